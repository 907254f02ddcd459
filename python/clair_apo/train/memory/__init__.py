"""What a run takes of memory, known before anything is loaded.

`trace.py` runs the training path over tensors without contents and sees what lives; `account.py` adds up;
`model.py` is the model without its weights; `plan.py` is the whole of it for a run; `show.py` prints it.
"""
