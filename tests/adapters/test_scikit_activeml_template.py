"""Our strategies under the checks that scikit-activeml writes for its own: its template test case.

Releases have not had the template since 0.6; it is taken from 0.5.0, which the Makefile unpacks into the environment, and run
against the version that is installed. A template wants one ``test_<argument>`` for every argument: those of ours are below. Its
checks for regressors (reg, fit_reg) and for utility_weight pass over strategies without these arguments.
"""

import sys
import unittest
from pathlib import Path

import numpy as np
from peer_packages import skip_without

skip_without("skactiveml")
import skactiveml
from skactiveml.classifier import ParzenWindowClassifier

from prunefuse.adapters.skactiveml import KCenter, Uncertainty

RELEASE = Path(sys.prefix) / "scikit-activeml-0.5.0"
skactiveml.__path__.append(str(RELEASE / "skactiveml"))
skip_without("skactiveml.tests")
from skactiveml.tests.template_query_strategy import TemplateSingleAnnotatorPoolQueryStrategy as Template

X = np.random.default_rng(0).normal(size=(12, 2))
Y = np.array([0.0, 1, 0, 1, *[np.nan] * 8])


class TestUncertainty(Template, unittest.TestCase):
    def setUp(self):
        clf = ParzenWindowClassifier(classes=[0, 1], random_state=0)
        super().setUp(Uncertainty, {}, query_default_params_clf={"X": X, "y": Y, "clf": clf})

    def test_init_param_strategy(self):
        cases = [("margin", None), ("least_confident", ValueError), (1, TypeError), (None, TypeError)]
        self._test_param("init", "strategy", cases)

    def test_query_param_clf(self):
        super().test_query_param_clf(test_cases=[])

    def test_query(self):
        """Its results are in test_scikit_activeml.py."""


class TestKCenter(Template, unittest.TestCase):
    def setUp(self):
        super().setUp(KCenter, {}, query_default_params_clf={"X": X, "y": Y})

    def test_query(self):
        """Its results are in test_scikit_activeml.py."""


del Template
