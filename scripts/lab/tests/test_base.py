# SPDX-License-Identifier: GPL-2.0-only
"""Which kernel source is taken when the pinned one has left the archive."""

import unittest

import base

PINNED = {"package": "linux-source-7.3", "version": "7.3.4-1~bpo13+1"}


class Nearest(unittest.TestCase):
    """The next newer source, or else the newest."""

    def nearest(self, *versions):
        """Returns the version chosen among some."""
        return base.nearest(PINNED, [("linux-source", version) for version in versions])[1]

    def test_next_newer(self):
        """The next newer release is nearer than a much newer or an older one."""
        self.assertEqual(self.nearest("7.2.12-1", "7.3.6-1", "7.4.1-1"), "7.3.6-1")

    def test_same_release_rebuilt(self):
        """A rebuild of the same release is the nearest."""
        self.assertEqual(self.nearest("7.3.4-2~bpo13+1", "7.3.5-1"), "7.3.4-2~bpo13+1")

    def test_only_older(self):
        """Where all are older the newest is taken."""
        self.assertEqual(self.nearest("7.2.12-1", "7.3~rc7-1~exp1", "6.12.1-1"), "7.3~rc7-1~exp1")

    def test_nothing(self):
        """An empty archive is an error that names the network."""
        with self.assertRaisesRegex(base.LabError, "network"):
            self.nearest()
