"""Training data: from files and the hub to data sets of sentence-transformers' trainer.

| file | reason |
|---|---|
| `sources.py` | what a spec stands for |
| `sets.py` | named sets: the public data of the paper's recipe |
| `hub.py` | data sets of the hub as local files |
| `files.py` | JSONL and Parquet, row by row |
| `rows.py` | a row, however its columns are called, to checked texts |
| `build.py` | a source to memory-mapped Arrow files in the cache |
| `load.py` | `load_training_data`: duplicates, weights, counts, the manifest |
| `mining/` | `mine_hard_negatives`; its `__init__` has the map |
| `extras.py` | the optional packages |
"""

from thalweg.training.data.load import TrainingData, load_training_data
from thalweg.training.data.mining import Mined, MiningStatus, Rule, mine_hard_negatives

__all__ = ["Mined", "MiningStatus", "Rule", "TrainingData", "load_training_data", "mine_hard_negatives"]
