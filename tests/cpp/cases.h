// SPDX-License-Identifier: Apache-2.0
// tests/cases.json for C++ tests: a strict reader of exactly that file's form (an object of lists of flat objects).
// Python reads the same file with json.load. Anything unexpected throws: a case list that is half read would test half.
// EVERGEMM_TESTS is the tests folder, defined by the build. Must not go here: what is done with a case.
#pragma once
#include <cctype>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <map>
#include <ostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace evergemm::proof {

struct GemmCase {
  std::string id;
  std::int64_t m, n, k;
  bool slow;  // too large for the reference's loops in a quick run
  std::string reason;
};
struct RoutingCase {
  std::string id;
  std::int64_t tokens, top_k, experts;
  bool slow;
  std::string reason;
};
struct QuantizeCase {
  std::string id;
  std::int64_t rows, columns, group_rows, group_columns;
  bool slow;
  std::string reason;
};

// What GoogleTest prints of a case.
inline void PrintTo(const GemmCase& c, std::ostream* stream) {
  *stream << c.id << ": " << c.m << " x " << c.n << " x " << c.k << ", " << c.reason;
}
inline void PrintTo(const QuantizeCase& c, std::ostream* stream) {
  *stream << c.id << ": " << c.rows << " x " << c.columns << " in " << c.group_rows << " x " << c.group_columns << ", "
          << c.reason;
}

class CaseFile {
 public:
  explicit CaseFile(const std::string& path) {
    std::ifstream file(path);
    if (!file) throw std::runtime_error("no case list at " + path);
    text_.assign(std::istreambuf_iterator<char>(file), {});
    for_each('{', '}', [this] {
      const std::string name = string();
      expect(':');
      if (peek() == '"') return void(string());  // "about"
      std::vector<Record>& list = lists_[name];
      for_each('[', ']', [&] {
        if (peek() != '{') return void(word());  // a list of numbers: benchmarks only
        Record& record = list.emplace_back();
        for_each('{', '}', [&] {
          const std::string key = string();
          expect(':');
          if (!record.emplace(key, peek() == '"' ? string() : word()).second) fail("a repeated key " + key);
        });
      });
    });
    if (peek() != '\0') fail("text behind the end");
  }

  std::vector<GemmCase> gemm() const {
    std::vector<GemmCase> cases;
    for (const Record& r : list("gemm", 6))
      cases.push_back({r.at("id"), number(r, "m"), number(r, "n"), number(r, "k"), flag(r, "slow"), r.at("reason")});
    return cases;
  }
  std::vector<QuantizeCase> quantize() const {
    std::vector<QuantizeCase> cases;
    for (const Record& r : list("quantize", 7))
      cases.push_back({r.at("id"), number(r, "rows"), number(r, "columns"), number(r, "group_rows"),
                       number(r, "group_columns"), flag(r, "slow"), r.at("reason")});
    return cases;
  }
  std::vector<RoutingCase> routing() const {
    std::vector<RoutingCase> cases;
    for (const Record& r : list("routing", 6))
      cases.push_back(
          {r.at("id"), number(r, "tokens"), number(r, "top_k"), number(r, "experts"), flag(r, "slow"), r.at("reason")});
    return cases;
  }

 private:
  using Record = std::map<std::string, std::string>;

  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error("case list: " + what + " at byte " + std::to_string(position_));
  }
  char peek() {
    while (position_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[position_]))) ++position_;
    return position_ < text_.size() ? text_[position_] : '\0';
  }
  void expect(char wanted) {
    if (peek() != wanted) fail(std::string("expected ") + wanted);
    ++position_;
  }
  template <class Item>
  void for_each(char open, char close, Item item) {
    expect(open);
    if (peek() == close) fail("an empty list");
    do item();
    while (peek() == ',' && ++position_ != 0);
    expect(close);
  }
  std::string string() {
    expect('"');
    const std::size_t end = text_.find_first_of("\"\\", position_);  // no escapes in this file
    if (end == std::string::npos || text_[end] != '"') fail("a string that does not end");
    const std::string value = text_.substr(position_, end - position_);
    position_ = end + 1;
    return value;
  }
  std::string word() {  // true, false or a whole number
    peek();
    const std::size_t begin = position_;
    while (position_ < text_.size() && std::isalnum(static_cast<unsigned char>(text_[position_]))) ++position_;
    if (begin == position_) fail("expected a value");
    return text_.substr(begin, position_ - begin);
  }
  const std::vector<Record>& list(const std::string& name, std::size_t keys) const {
    const auto found = lists_.find(name);
    if (found == lists_.end()) fail("no list " + name);
    for (const Record& record : found->second)
      if (record.size() != keys) fail("a case of " + name + " with " + std::to_string(record.size()) + " keys");
    return found->second;
  }
  std::int64_t number(const Record& record, const char* key) const {
    const std::string& word = record.at(key);
    if (word.find_first_not_of("0123456789") != std::string::npos) fail("not a number: " + word);
    return std::stoll(word);
  }
  bool flag(const Record& record, const char* key) const {
    const std::string& word = record.at(key);
    if (word != "true" && word != "false") fail("not true or false: " + word);
    return word == "true";
  }

  std::string text_;
  std::size_t position_ = 0;
  std::map<std::string, std::vector<Record>> lists_;
};

#if defined(EVERGEMM_TESTS)
inline std::vector<GemmCase> gemm_cases() { return CaseFile(EVERGEMM_TESTS "/cases.json").gemm(); }
inline std::vector<RoutingCase> routing_cases() { return CaseFile(EVERGEMM_TESTS "/cases.json").routing(); }
inline std::vector<QuantizeCase> quantize_cases() { return CaseFile(EVERGEMM_TESTS "/cases.json").quantize(); }
#endif

}  // namespace evergemm::proof
