"""Teachers of video pretraining: models of others, an EndoMamba of ours, features on disk."""
