"""thalweg beside other libraries. Nothing here is imported by `import thalweg`.

transformers/   thalweg's models in transformers; chunk by chunk through any model there that carries a cache
langchain.py, llama_index.py, haystack/    an embedder and a splitter for each; _shared.py is what they have in common
"""
