# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many examples tests of properties try that do not say so: many, and few with `--hypothesis-profile quick`."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("whole", max_examples=60)
settings.register_profile("quick", max_examples=10)
settings.load_profile("whole")
