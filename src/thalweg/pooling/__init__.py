"""From hidden vectors to one vector for a document or section: the one home of pooling.

pooling.py   last token and mean
lexicon.py   a text's words beside its mean
vectors.py   what is done to pooled vectors: cut, normalised, rounded
"""
