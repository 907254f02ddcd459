"""A method of one's own: the model improves its own answer, and no stronger one is needed.

    cd examples/methods    # a module of one's own is found in the working folder, or as Python finds it
    clair-apo build-pairs --input prompts.parquet --method self_refined:SelfRefined \
        --model llama3.1:8b --model-url http://localhost:11434/v1 \
        --judge gpt-4o --judge-url https://api.openai.com/v1 --verify --drop not_verified

Calls, ledger, pacing, cost, failures and resume are those of every method; so is the judge.
"""

from __future__ import annotations

from clair_apo.build.methods import MODEL, Answer, Draft, InputRow, Method, Talk

ASK = "Look at your answer again. Write it anew with its mistakes mended, and nothing else."


class SelfRefined(Method):
    name = "self-refined"
    asks = (MODEL,)

    async def __call__(self, row: InputRow, talk: Talk) -> Draft:
        own = await talk.own_answer()
        asked = [
            *row.messages,
            {"role": "assistant", "content": own.text},
            {"role": "user", "content": ASK},
        ]
        reply = await talk.ask("revise", MODEL, asked, about=(own.text,))
        return Draft(chosen=Answer(reply.text.strip(), talk.named(MODEL, reply)), rejected=own)
