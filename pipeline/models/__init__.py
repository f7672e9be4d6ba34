"""The masked autoencoder, the classifiers and their training."""
