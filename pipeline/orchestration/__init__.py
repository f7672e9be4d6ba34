"""The graph of stages: plan, run, torchrun, MLflow."""
