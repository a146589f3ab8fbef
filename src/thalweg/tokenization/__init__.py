"""The parts behind `thalweg.tokenizer`.

text.py      any form of a document (string, pieces, bytes, file) → checked str pieces of bounded size
cuts.py      where one tokenizer lets a text be cut without changing its ids
windows.py   pieces → blocks of ids in bounded memory, and the self-check of that
folder.py    a checkpoint folder → its `tokenizers` object
"""
