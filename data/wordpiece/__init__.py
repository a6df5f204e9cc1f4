"""What a model folder says of its tokenizer: vocab.txt, tokenizer.json and its config, added_tokens.json.

One rule for every command.
- Tokens: those of --vocab_file, else of vocab.txt, else of tokenizer.json. Two in one folder that differ are
  an error.
- Case: as --do_lower_case says, else tokenizer_config.json, else tokenizer.json; where none of them says,
  texts keep their case if a token of the vocabulary has a capital letter.
- Added tokens: those that transformers finds, with its ids, or an error that names the token.
- A tokenizer that is not BERT's is an error that names the setting.
"""
