"""Text to token ids, exactly and in bounded memory.

tokenizer.py  the tokenizer of a checkpoint: EOS, length limit, streams
text.py       any form of a document (string, pieces, bytes, file) → checked str pieces of bounded size
backend.py    what a tokenizer has to offer; blocks of ids
library.py    a tokenizer of the `tokenizers` library as a backend
cuts.py       where such a tokenizer lets a text be cut without changing its ids
windows.py    pieces → its blocks of ids in bounded memory, and the self-check of that
world.py      the tokenizer of the RWKV models as a backend
folder.py     a checkpoint folder → its backend
"""
