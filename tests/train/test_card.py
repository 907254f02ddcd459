"""The model card of a trained folder."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import runs
import yaml
from markdown_it import MarkdownIt

from clair_apo.train.card import base_model, card, front_matter, licence, write_card

sys.path.insert(0, str(Path(__file__).parent.parent / "llm"))

hub = pytest.importorskip("huggingface_hub")


def front(text: str) -> dict[str, Any]:
    """The YAML as the Hub's own client reads it."""
    loaded: dict[str, Any] = hub.ModelCard(text).data.to_dict()
    return loaded


def made(objective: str = "apo-zero", **others: Any) -> str:
    records = runs.metrics(100)
    return card(records, runs.facts(records, objective, **others))


def test_the_hub_reads_it(tmp_path: Path) -> None:
    records = runs.metrics(100)
    write_card(tmp_path / "README.md", records, runs.facts(records))
    loaded = hub.ModelCard.load(tmp_path / "README.md")
    assert loaded.data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert loaded.data.library_name == "transformers"
    assert loaded.data.pipeline_tag == "text-generation"
    assert {"apo", "dpo-like", "clair-apo", "apo-zero"} <= set(loaded.data.tags)
    assert loaded.data.license is None
    assert loaded.text.lstrip().startswith("# trained")
    assert list(tmp_path.iterdir()) == [tmp_path / "README.md"]


def test_it_tells_the_run() -> None:
    text = made()
    for part in (
        "`1 − σ(r_c) + σ(r_r)`, where `r = β log(π(y|x) / π_ref(y|x)), β = 0.1`.",
        "11,874 of 12,010 rows of pairs\\_revision.parquet; 136 were left out:",
        "- too long: 131",
        "| hardware | CPU, 2 threads |",
        "| torch | 2.15.0 |",
        "| learning rate | 2e-07 |",
        "On held-out pairs: chosen up, rejected down: what apo-zero promises.",
        "| | first step | mean of the last 10 steps | held-out pairs at the end |",
        "eprint = {2408.06266}",
        "Transactions of the Association for Computational Linguistics",
    ):
        assert part in text, part
    assert re.search(r"nats an answer \| 0\.000 \| \+\d\.\d+ \| \+6\.081 \|", text)


def test_hostile_names_are_text_in_yaml_and_in_markdown() -> None:
    records = runs.metrics(5)
    for hostile in (
        runs.HOSTILE,
        "x\n---\nlicense: mit\n",
        "- [a](https://evil.example) www.evil.example",
        "1. <b>",
    ):
        facts = runs.facts(
            records, hostile, model=hostile, base_model=hostile, pairs=hostile, hardware=hostile
        )
        facts["dropped"] = {hostile: 1}
        facts["settings"] |= {"output_dir": f"/x/{hostile.replace('/', '')}", "optimizer": hostile}
        facts["versions"] = {hostile: hostile}
        text = card(records, facts)
        assert set(front(text)) == {"library_name", "pipeline_tag", "tags"}
        assert "\x1b" not in text
        parsed = MarkdownIt("commonmark").enable("table").parse(hub.ModelCard(text).text)
        inline = [child for token in parsed for child in token.children or []]
        assert {c.attrs["href"] for c in inline if c.type == "link_open"} == {
            "https://arxiv.org/abs/2408.06266"
        }
        assert not any(c.type in ("html_inline", "image", "strong_open", "em_open") for c in inline)
        html = "".join(t.content for t in parsed if t.type == "html_block")
        assert set(re.findall(r"</?\w+", html)) == {"<details", "<summary", "</summary", "</details"}
        assert sum(t.type == "fence" for t in parsed) == 2
        assert all(
            re.match(r"\| [^|\\]*(\\.[^|\\]*)*\|", line)
            for line in text.splitlines()
            if line.startswith("| &lt")
        )


@pytest.mark.parametrize("name", ["réponse 😀", "a'b\"c", "x\\y"])
def test_the_code_is_python_whatever_the_folder_is_called(name: str) -> None:
    records = runs.metrics(3)
    facts = runs.facts(records)
    facts["settings"]["output_dir"] = name
    code = re.findall(r"```python\n(.*?)```", card(records, facts), re.S)[0]
    tree = ast.parse(code)
    paths = [
        n.value.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)
    ]
    assert paths == [name]


@pytest.mark.parametrize("chat", [True, False])
def test_the_code_answers(tmp_path: Path, chat: bool) -> None:
    pytest.importorskip("transformers")
    from test_local import TEMPLATE, save_tiny

    folder = save_tiny(tmp_path / "trained", TEMPLATE if chat else None)
    records = runs.metrics(3)
    write_card(folder / "README.md", records, runs.facts(records), chat=chat)
    code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.S)[0]
    done = subprocess.run(
        [sys.executable, "-c", code.replace("200", "5")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_base_models() -> None:
    def of(model: str) -> str | None:
        return base_model({"model": model})

    assert of("meta-llama/Meta-Llama-3-8B-Instruct") == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert of("local:smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert of("/home/me/.cache/huggingface/hub/models--org--some-model/snapshots/ab12/") == "org/some-model"
    for folder in ("/home/me/models/mine", "mine", "../a/b", "local:/models/mine", "a/b/c"):
        assert of(folder) is None


def test_a_folder_that_looks_like_a_hub_name_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert base_model({"model": "org/model"}) is None


def test_the_licence_is_that_of_the_base_model_where_it_is_known(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"model": str(tmp_path)}
    assert licence(facts) == {}
    for text in (
        "no front matter",
        "---\nlicense: [a\n---\n",
        "---\n- a\n---\n",
        "---\nlicense:\n- mit\n---\n",
    ):
        (tmp_path / "README.md").write_text(text)
        assert licence(facts) == {}
    (tmp_path / "README.md").write_text(
        "---\nlicense: other\nlicense_name: mine\nlicense_link: LICENSE\ntags: [a]\n---\n# x\n"
    )
    assert licence(facts) == {"license": "other", "license_name": "mine", "license_link": "LICENSE"}
    assert licence({"model": "local:smollm2"}) == {"license": "apache-2.0"}
    assert licence({"model": f"local:{tmp_path}"})["license"] == "other"


def test_front_matter_of_other_runs() -> None:
    facts = runs.facts(runs.metrics(3), "sft")
    assert front_matter(facts)["tags"] == ["clair-apo", "sft", "preference-optimization"]
    facts = runs.facts(
        runs.metrics(3), "apo-down", pairs="/c/hub/datasets--org--data/snapshots/ab/x.parquet"
    )
    facts["settings"]["lora_rank"] = 16
    found = front_matter(facts)
    assert found["datasets"] == ["org/data"]
    assert (found["library_name"], found["base_model_relation"]) == ("peft", "adapter")
    assert "pip install peft" in card([], facts)


def test_nobodys_folders_are_told() -> None:
    records = runs.metrics(3)
    facts = runs.facts(
        records, model="/home/me/models/base", base_model=None, pairs="/home/me/pairs.parquet"
    )
    for name, path in (
        ("model", "/home/me/models/base"),
        ("eval_pairs", "~/held.parquet"),
        ("output_dir", "/home/me/o"),
    ):
        facts["settings"][name] = path
    text = card(records, facts)
    assert "/home/me" not in text
    assert "# o\n" in text
    assert "base, trained with apo-zero" in text


def test_a_run_without_metrics() -> None:
    text = card([], runs.facts([]))
    assert "no log-probabilities" in text
    assert yaml.safe_load(text.split("---\n")[1])["library_name"] == "transformers"


def test_unpaired_rows_are_no_pairs() -> None:
    assert "rated answers by clair-apo" in made("kto")
