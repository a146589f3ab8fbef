"""Hard negatives for pairs: for each query some of the nearest texts that are not its positives.

| file | reason |
|---|---|
| `run.py` | `mine_hard_negatives`: all of it in order |
| `rule.py` | which of the nearest are taken |
| `texts.py` | the different queries and documents, and false negatives |
| `passages.py` | a corpus that is searched besides the positives |
| `embed.py` | any embedder that can be used |
| `vectors.py` | vectors on the disk, in blocks |
| `neighbours.py` | the nearest documents, by products of blocks |
| `work.py` | the work folder, and resuming |
| `output.py` | the file that comes of it |

sentence-transformers' function of this name holds all texts and vectors in memory, drops rows with too few negatives,
and begins anew after a crash.
"""

from thalweg.training.data.mining.rule import Rule
from thalweg.training.data.mining.run import Mined, MiningStatus, mine_hard_negatives
from thalweg.training.data.mining.work import check_out

__all__ = ["Mined", "MiningStatus", "Rule", "check_out", "mine_hard_negatives"]
