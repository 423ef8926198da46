"""Forgetting users, items or interactions that a recommender has learned from."""
