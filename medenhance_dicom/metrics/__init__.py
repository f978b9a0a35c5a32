"""Measures of pictures, of sets of them and of what is found in them: one formula in one place, each with an id."""

from __future__ import annotations

from medenhance_dicom.metrics.brisque import SupportVectors, brisque, brisque_features
from medenhance_dicom.metrics.detail import average_gradient, entropy
from medenhance_dicom.metrics.distribution import fid, frechet_distance, kid
from medenhance_dicom.metrics.fidelity import psnr, ssim
from medenhance_dicom.metrics.fundus import FundusField, GoodColours, fit_colours, load_colours, save_colours
from medenhance_dicom.metrics.grading import GradingScores, grading_scores, scores_of_counts
from medenhance_dicom.metrics.lesions import lesion_contrast, lesions_in_boxes
from medenhance_dicom.metrics.location import LocationScores, field_radius, location_distance, location_scores
from medenhance_dicom.metrics.niqe import NaturalScenes, fit_niqe, niqe
from medenhance_dicom.metrics.parameters import load_brisque, load_niqe, save_niqe
from medenhance_dicom.metrics.piqe import piqe
from medenhance_dicom.metrics.registry import Metric, Sample, SetMetric, build_metrics, metric_ids
from medenhance_dicom.metrics.segmentation import SegmentationScores, auroc, segmentation_scores
from medenhance_dicom.metrics.signal import signal_to_noise
from medenhance_dicom.metrics.significance import PairedComparison, bootstrap_interval, compare_paired, holm

__all__ = [
    "FundusField",
    "GoodColours",
    "GradingScores",
    "LocationScores",
    "Metric",
    "NaturalScenes",
    "PairedComparison",
    "Sample",
    "SegmentationScores",
    "SetMetric",
    "SupportVectors",
    "auroc",
    "average_gradient",
    "bootstrap_interval",
    "brisque",
    "brisque_features",
    "build_metrics",
    "compare_paired",
    "entropy",
    "fid",
    "field_radius",
    "fit_colours",
    "fit_niqe",
    "frechet_distance",
    "grading_scores",
    "holm",
    "kid",
    "lesion_contrast",
    "lesions_in_boxes",
    "load_brisque",
    "load_colours",
    "load_niqe",
    "location_distance",
    "location_scores",
    "metric_ids",
    "niqe",
    "piqe",
    "psnr",
    "save_colours",
    "save_niqe",
    "scores_of_counts",
    "segmentation_scores",
    "signal_to_noise",
    "ssim",
]
