"""One plain function per job kind: the only place that joins data, diffusion, downstream and store.

No Ray here: a job called directly gives what it gives through the engine. What differs between
the two (who trains, where progress goes) comes in with the Context.
"""
