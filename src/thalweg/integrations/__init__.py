"""thalweg beside other libraries. Nothing here is imported by `import thalweg`.

transformers.py   chunk by chunk through any transformers model that carries a cache
"""
