"""How near generated images are to real ones: measures, the networks some of them need, and the evaluator."""

from .measures import classifier_score, exact_wasserstein, frechet_distance, sliced_wasserstein

__all__ = ["classifier_score", "exact_wasserstein", "frechet_distance", "sliced_wasserstein"]
