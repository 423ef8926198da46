"""Language models and text for recommenders: questions, answers, features."""
