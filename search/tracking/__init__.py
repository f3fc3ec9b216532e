"""MLflow: a study is one experiment with one parent run, and each trial a child run of it."""
