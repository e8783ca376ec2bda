"""What leaves a finished study: its models with a card, and labelled images that they make."""
