"""Anomaly detection on received symbols."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedsem.hooks.detector import Detector, Fitted
from fedsem.registry import register
from fedsem.streams import Stream


@register("defense", "symbol_anomaly")
class SymbolAnomaly(Detector):
    """Flags receptions whose numbers (I and Q of every symbol, after the equaliser) are unlike clean ones: the score is
    the Mahalanobis distance to the nearest class of clean receptions, min_c (y - m_c)^T S^-1 (y - m_c), with the
    covariance S that all classes share, as the decoder tells them (Lee et al., A Simple Unified Framework for Detecting
    Out-of-Distribution Samples and Adversarial Attacks, 2018, section 2, on what is received in place of a layer).

    Tasks without decisions have one class.

    Attributes:
        shrinkage: share of the mean variance in S, which keeps it invertible: (1 - s) S + s tr(S) / n I.
    """

    shrinkage: Annotated[float, Field(gt=0, le=1)] = 0.01

    def fit(self, decoder: nn.Module, heard: Tensor, decisions: Tensor | None, stream: Stream) -> Fitted:
        rows = heard.double()
        told = torch.zeros(len(rows), dtype=torch.long, device=rows.device) if decisions is None else decisions
        classes, places = told.unique(return_inverse=True)
        means = torch.stack([rows[places == one].mean(0) for one in range(len(classes))])
        apart = rows - means[places]
        covariance = apart.T @ apart / len(rows)
        width = rows.shape[1]
        mean = covariance.diagonal().mean().clamp_min(1e-12)
        shrunk = (1 - self.shrinkage) * covariance
        shrunk = shrunk + self.shrinkage * mean * torch.eye(width, dtype=rows.dtype, device=rows.device)
        # y -> L^-1 y turns the distance into a Euclidean one.
        whitening = torch.linalg.inv(torch.linalg.cholesky(shrunk))
        return {"means": (means @ whitening.T).float(), "whitening": whitening.float()}

    def score(self, decoder: nn.Module, heard: Tensor, fitted: Fitted) -> Tensor:
        white = heard @ fitted["whitening"].T
        return (white.unsqueeze(-2) - fitted["means"]).square().sum(-1).amin(-1)
