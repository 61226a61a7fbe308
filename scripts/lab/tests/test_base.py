# SPDX-License-Identifier: GPL-2.0-only
"""Which kernel source is taken when the pinned one has left the archive."""

import unittest
from unittest import mock

import base

PINNED = {"package": "linux-source-7.3", "version": "7.3.4-1~bpo13+1"}


class Nearest(unittest.TestCase):
    """The next newer source, or else the newest."""

    def test_nearest(self):
        """A rebuild of the same release is nearer than the next newer release, that than a much
        newer or an older one; where all are older the newest is taken."""
        for versions, nearest in (
            (["7.2.12-1", "7.3.6-1", "7.4.1-1"], "7.3.6-1"),
            (["7.3.4-2~bpo13+1", "7.3.5-1"], "7.3.4-2~bpo13+1"),
            (["7.2.12-1", "7.3~rc7-1~exp1", "6.12.1-1"], "7.3~rc7-1~exp1"),
        ):
            found = [("linux-source", version) for version in versions]
            self.assertEqual(base.nearest(PINNED, found)[1], nearest)
        # An empty archive is an error that names the network.
        with self.assertRaisesRegex(base.LabError, "network"):
            base.nearest(PINNED, [])


class Find(unittest.TestCase):
    """A release of Debian, in the archive of the toolchain or in that of the development."""

    def test_mirrors_are_asked_for_when_lists_are_read(self):
        """What apt says of its mirrors is empty until it has read the release's lists."""
        calls = []

        def candidates(*options):
            """Has the release where the development is."""
            calls.append(options)
            return [("linux-source-7.3", "7.3~rc7-1~exp1")] if options else []

        def archive():
            """Fails as long as no lists were read."""
            self.assertEqual(calls, [()])
            return ("-oX",)

        with (
            mock.patch.object(base, "candidates", candidates),
            mock.patch.object(base, "development_archive", archive),
        ):
            self.assertEqual(base.find("7.3-rc7")[2], ("-oX",))
