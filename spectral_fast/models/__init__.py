"""Finding the weight matrices of models and checkpoints, and what each of them does."""

from spectral_fast.models.checkpoint import Checkpoint, open_checkpoint
from spectral_fast.models.files import CheckpointError, CheckpointTensor
from spectral_fast.models.matrices import SkippedTensor, WeightMatrices, WeightMatrix, weight_matrices
from spectral_fast.models.roles import EMBEDDING_ROLES

__all__ = [
    "EMBEDDING_ROLES",
    "Checkpoint",
    "CheckpointError",
    "CheckpointTensor",
    "SkippedTensor",
    "WeightMatrices",
    "WeightMatrix",
    "open_checkpoint",
    "weight_matrices",
]
