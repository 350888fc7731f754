# SPDX-License-Identifier: Apache-2.0
"""evergemm under other libraries' names. Nothing here happens on import; each module says what its install() does."""
