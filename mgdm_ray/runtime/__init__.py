"""Ray and Optuna: running a plan, training on Ray Train, searching with Ray Tune."""
