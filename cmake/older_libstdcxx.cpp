// SPDX-License-Identifier: Apache-2.0
// Linked into release wheels only: what g++ 12's headers take from a libstdc++ newer than GLIBCXX_3.4.24, and from a glibc
// newer than 2.28, defined here and hidden by the version script. Must not go here: anything a debug build needs.
#include <new>
#include <sstream>

template class std::basic_stringbuf<char>;
template class std::basic_ostringstream<char>;
template class std::basic_istringstream<char>;
template class std::basic_stringstream<char>;

namespace std {
void __throw_bad_array_new_length() { throw std::bad_array_new_length(); }
}  // namespace std

extern "C" char __libc_single_threaded;
char __libc_single_threaded = 0;  // "maybe not": reference counts stay atomic
