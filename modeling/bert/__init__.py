"""BERT: its architecture, the names and shapes of its weights,
and the encoder in OneFlow's own modules and operators.

config.py   BertConfig, the one check of a config.json
names.py    the weights by name and shape, as Hugging Face has them
dropout.py  dropout masks that are a function of a key, and the module that applies them
model.py    BertModel
"""
