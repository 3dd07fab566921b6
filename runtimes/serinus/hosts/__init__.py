"""Other people's model classes as `Model`, and `Model` as theirs."""
