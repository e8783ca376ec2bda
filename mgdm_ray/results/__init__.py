"""What is made from records: the report, the MLflow mirror, exported models and images."""
