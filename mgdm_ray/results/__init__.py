"""What is made from records: the report, the MLflow mirror, exported models and images."""

HEADLINE_FILE = "headline.json"
"""In a study's folder: the report's answer in numbers."""
ANSWER_FILE = "answer.txt"
"""Its first sentence, for the console."""
