"""Synthetic training data out of a chat model, in two steps: ideas for tasks, then an example of each.

Nothing here is imported by `import thalweg`; `client.py` and with it `run.py` need the extra `synth`.

    tasks.py       the six types of task, their shares, fields and attributes, as data
    languages.py   the languages that texts are asked for, and the scripts they are written in
    prompts.py     what the model is asked: a function of seed, type, number and attempt
    schema.py      replies to checked examples, or the reason why not
    pacing.py      requests and tokens a minute
    client.py      one endpoint: retries, waiting, giving up
    store.py       what came back, saved line by line, so that a run can end at any moment and go on later
    settings.py    what a user can say
    preview.py     prompts of a run that is not made
    run.py         all of it in order
    mining.py      negatives for the types whose examples have none
    output.py      examples to the rows that training reads
"""

from thalweg.synthesis.preview import first_prompts, n_requests
from thalweg.synthesis.settings import Settings
from thalweg.synthesis.tasks import counts_of_total

__all__ = ["Settings", "counts_of_total", "first_prompts", "n_requests"]
