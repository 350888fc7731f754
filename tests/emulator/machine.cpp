// SPDX-License-Identifier: Apache-2.0
// The emulated multiprocessor: one cluster at a time, its threads as fibers, a scheduler that draws who goes on.
#include "machine.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <vector>

#include "evergemm/numerics.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// Kernels name their dynamic shared memory; its address is all that they use of it.
namespace evergemm::sm90 {
alignas(1024) std::uint8_t shared_memory[16];
}

namespace evergemm::emulator {
namespace {

constexpr std::uint32_t kRankShift = 24, kOffsetMask = (1u << kRankShift) - 1;
constexpr std::size_t kStackBytes = 128 * 1024;
constexpr int kWarp = 32, kNamedBarriers = 16;
constexpr std::size_t kDeliverOneIn = 6, kSlowOneIn = 6, kSlowness = 24, kMoodSteps = 3000;

struct Random {
  std::mt19937_64 engine;
  std::size_t below(std::size_t limit) { return engine() % limit; }
  bool one_in(std::size_t n) { return below(n) == 0; }
};

// ---- what there is -----------------------------------------------------------------------------------------------------------

struct Mbarrier {
  int expected = 0, pending = 0;  // arrivals; expected 0: not initialized
  std::int64_t bytes = 0;         // announced, less those that came
  std::uint32_t phase = 0;        // how often it completed
};
struct Meeting {
  int arrived = 0, expected = 0;
  std::uint64_t generation = 0;
  int all = 1, verdict = 1;  // of block_barrier_and
};
struct Warp {
  Exchanged gathering{}, result{};
  const char* what = nullptr;
  int arrived = 0;
  std::uint64_t generation = 0;
  bool slow = false;
};
struct Cta {
  int rank = 0, threads = 0, left = 0;  // left: threads that have returned
  Index block;
  std::vector<std::uint8_t> memory;
  std::vector<Mbarrier> barriers;  // one a word of 8 bytes
  std::array<Meeting, kNamedBarriers> named;
  std::vector<Warp> warps;
  bool gone() const { return left == threads; }
};
// Sums of matrix instructions that have not been waited for: kept apart, the thread's own hold rubbish meanwhile.
struct Shadow {
  void* sums;
  std::vector<std::uint32_t> values;
  int pending;
};
struct Multiply {
  Shadow* into;
  int columns;
  bool is_float, accumulate;
  std::uint64_t rows, operand;
  int group;
};
struct Copy {
  std::uint32_t destination;
  const void* source;
  int bytes;
};
struct Thread {
  ucontext_t context;
  Cta* cta = nullptr;
  Warp* warp = nullptr;
  Place place;
  int lane = 0;
  bool done = false, waited = false;     // waited: for the previous kernel
  bool (*ready)(const void*) = nullptr;  // null: can go on
  const void* question = nullptr;
  const char* waits_for = "";
  std::uint32_t waits_at = 0;
  std::deque<Multiply> multiplies;
  std::deque<Shadow> shadows;
  int multiply_group = 0;
  std::vector<Copy> copies;
  std::deque<std::shared_ptr<int>> stores;  // of committed groups: how many still read
  std::shared_ptr<int> open_stores;
  void* fake_stack = nullptr;
};
using Delivery = std::function<void()>;

Conduct how;
std::string failure;

struct Machine {
  std::vector<Cta> ctas;
  std::vector<Thread> threads;
  std::vector<Delivery> own, remote;  // copies and arrivals under way: into the block that asked for them, out of it
  Meeting cluster;
  Random random;
  ucontext_t scheduler;
  Thread* current = nullptr;
  const std::function<void()>* body = nullptr;
  void* fake_stack = nullptr;
  const void* host_stack = nullptr;
  std::size_t host_stack_bytes = 0;
};
Machine machine;

Thread& me() { return *machine.current; }

std::string text_of(const Thread& thread) {
  return "block " + std::to_string(thread.place.block.x) + ", thread " + std::to_string(thread.place.thread.x);
}
void note(const std::string& text) {
  if (failure.empty()) failure = text + " (seed " + std::to_string(how.seed) + ")";
}

// ---- fibers --------------------------------------------------------------------------------------------------------------------

std::uint8_t* stack_of(std::size_t thread) {
  static std::uint8_t* stacks = nullptr;
  constexpr std::size_t kMost = 8 * 512, kGuardBytes = 4096, kSpacing = kStackBytes + kGuardBytes;
  if (stacks == nullptr) {
    void* memory =
        mmap(nullptr, kMost * kSpacing, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    stacks = static_cast<std::uint8_t*>(memory);
    for (std::size_t i = 0; i < kMost; ++i)  // a stack that grows too far meets a page that nobody may touch
      if (mprotect(stacks + i * kSpacing, kGuardBytes, PROT_NONE) != 0) std::abort();
  }
  return stacks + thread * kSpacing + kGuardBytes;
}

void to_scheduler(bool for_ever = false) {
  Thread& thread = me();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &thread.fake_stack, machine.host_stack, machine.host_stack_bytes);
#else
  static_cast<void>(for_ever);
#endif
  swapcontext(&thread.context, &machine.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(thread.fake_stack, nullptr, nullptr);
#endif
}
void to_thread(Thread& thread) {
  machine.current = &thread;
#if defined(__SANITIZE_ADDRESS__)
  const auto index = static_cast<std::size_t>(&thread - machine.threads.data());
  __sanitizer_start_switch_fiber(&machine.fake_stack, stack_of(index), kStackBytes);
#endif
  swapcontext(&machine.scheduler, &thread.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine.fake_stack, nullptr, nullptr);
#endif
  machine.current = nullptr;
}
void thread_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &machine.host_stack, &machine.host_stack_bytes);
#endif
  (*machine.body)();
  Thread& thread = me();
  thread.done = true;
  ++thread.cta->left;
  to_scheduler(true);
}

void make_ready(Thread& thread, std::uint8_t* stack) {
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = stack;
  thread.context.uc_stack.ss_size = kStackBytes;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, thread_main, 0);
}

// Until `question` holds. Others go first even where it does, now and then.
template <class Question>
void wait_for(const char* what, std::uint32_t at, const Question& question) {
  if (question() && !machine.random.one_in(8)) return;
  Thread& thread = me();
  thread.ready = [](const void* asked) { return (*static_cast<const Question*>(asked))(); };
  thread.question = &question;
  thread.waits_for = what;
  thread.waits_at = at;
  to_scheduler();
  thread.ready = nullptr;
}

// ---- shared memory and barriers --------------------------------------------------------------------------------------------------

Cta& cta_at(std::uint32_t address) {
  const std::uint32_t rank = address >> kRankShift;
  Cta& own = *me().cta;
  if (rank == 0) return own;
  if (rank > machine.ctas.size()) fail("an address of a block that the cluster does not have");
  return machine.ctas[rank - 1];
}
std::uint8_t* bytes_at(Cta& cta, std::uint32_t address, std::uint32_t bytes) {
  const std::uint32_t offset = address & kOffsetMask;
  if (offset < kWindow || offset + bytes > kWindow + cta.memory.size()) return nullptr;
  return cta.memory.data() + (offset - kWindow);
}
Mbarrier* barrier_at(Cta& cta, std::uint32_t address) {
  const std::uint32_t offset = address & kOffsetMask;
  if (offset % 8 != 0 || bytes_at(cta, address, 8) == nullptr) return nullptr;
  Mbarrier& barrier = cta.barriers[(offset - kWindow) / 8];
  return barrier.expected == 0 ? nullptr : &barrier;
}
Mbarrier& own_barrier(std::uint32_t address) {
  Mbarrier* barrier = barrier_at(*me().cta, address);
  if (barrier == nullptr) fail("no barrier at " + std::to_string(address & kOffsetMask));
  return *barrier;
}
void settle(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  barrier.pending = barrier.expected;
  ++barrier.phase;
}
// "" or what is wrong with one arrival more.
std::string arrive(Mbarrier& barrier) {
  if (barrier.pending == 0) return "an arrival that the barrier does not expect";
  --barrier.pending;
  settle(barrier);
  return "";
}
bool passed(const Mbarrier& barrier, std::uint32_t parity) { return (barrier.phase & 1) != (parity & 1); }

void post(bool remote, Delivery delivery) { (remote ? machine.remote : machine.own).push_back(std::move(delivery)); }
// One that is under way comes; false where there is none that may.
bool deliver_one(bool nothing_else_can_go_on) {
  std::vector<Delivery>&own = machine.own, &remote = machine.remote;
  const bool remote_too = how.network != Network::late || nothing_else_can_go_on;
  const std::size_t count = own.size() + (remote_too ? remote.size() : 0);
  if (count == 0) return false;
  const std::size_t drawn = machine.random.below(count);
  std::vector<Delivery>& from = drawn < own.size() ? own : remote;
  Delivery& chosen = from[drawn < own.size() ? drawn : drawn - own.size()];
  const Delivery now = std::move(chosen);
  if (&chosen != &from.back()) chosen = std::move(from.back());
  from.pop_back();
  now();
  return true;
}

// ---- the copy engine ---------------------------------------------------------------------------------------------------------------

std::uint32_t swizzled(std::uint32_t address, CUtensorMapSwizzle swizzle) {
  const std::uint32_t bits = swizzle == CU_TENSOR_MAP_SWIZZLE_128B  ? 7
                             : swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 3
                             : swizzle == CU_TENSOR_MAP_SWIZZLE_32B ? 1
                                                                    : 0;
  return address ^ ((address >> 7 & bits) << 4);
}
std::uint32_t box_bytes(const CUtensorMap& map) { return map.box[0] * map.box[1] * map.element_bytes; }  // of one plane
// copy(shared address, place in global memory or null outside of the matrix) for every element of a box.
template <class Move>
bool for_each_element(const CUtensorMap& map, std::uint32_t address, const std::array<int, 3>& at, const Move& move) {
  const std::uint32_t line_bytes = map.box[0] * map.element_bytes;
  for (std::uint32_t line = 0; line < map.box[1]; ++line)
    for (std::uint32_t element = 0; element < map.box[0]; ++element) {
      const std::int64_t inner = at[0] + static_cast<std::int64_t>(element),
                         outer = at[1] + static_cast<std::int64_t>(line);
      const bool inside = inner >= 0 && outer >= 0 && at[2] >= 0 && inner < static_cast<std::int64_t>(map.sizes[0]) &&
                          outer < static_cast<std::int64_t>(map.sizes[1]) &&
                          (map.dimensions < 3 || at[2] < static_cast<std::int64_t>(map.sizes[2]));
      std::uint8_t* global = static_cast<std::uint8_t*>(map.data) + inner * map.element_bytes +
                             outer * static_cast<std::int64_t>(map.pitches[0]) +
                             (map.dimensions < 3 ? 0 : at[2] * static_cast<std::int64_t>(map.pitches[1]));
      if (!move(swizzled(address + line * line_bytes + element * map.element_bytes, map.swizzle),
                inside ? global : nullptr))
        return false;
    }
  return true;
}

// ---- matrix instructions -------------------------------------------------------------------------------------------------------------

const std::array<float, 256>& decoded() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> values;
    for (unsigned code = 0; code < 256; ++code)
      values[code] = numerics::float8_e4m3fn_to_float(static_cast<std::uint8_t>(code));
    return values;
  }();
  return table;
}
// The 32 bytes of one line of an operand, as its descriptor says: 8-line atoms of 128-byte lines, swizzled.
bool read_line(Cta& cta, std::uint64_t descriptor, int line, std::uint8_t (&to)[32]) {
  if (descriptor >> 62 != 1) return false;  // 1: swizzled by 128 bytes
  const std::uint32_t start = static_cast<std::uint32_t>(descriptor & 0x3fff) << 4;
  const std::uint32_t stride = static_cast<std::uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  for (std::uint32_t piece = 0; piece < 2; ++piece) {
    const std::uint32_t address =
        start + static_cast<std::uint32_t>(line / 8) * stride + static_cast<std::uint32_t>(line % 8) * 128 + piece * 16;
    const std::uint8_t* from = bytes_at(cta, swizzled(address, CU_TENSOR_MAP_SWIZZLE_128B), 16);
    if (from == nullptr) return false;
    std::memcpy(to + piece * 16, from, 16);
  }
  return true;
}
template <class Value, class Sum, class Decode>
bool multiply_share(Thread& thread, const Multiply& instruction, const Decode& decode) {
  Cta& cta = *thread.cta;
  const int row = static_cast<int>(thread.place.thread.x / kWarp % 4) * 16 + thread.lane / 4;
  std::uint8_t bytes[32];
  Value rows[2][32], column[32];
  for (int half = 0; half < 2; ++half) {
    if (!read_line(cta, instruction.rows, row + half * 8, bytes)) return false;
    for (int i = 0; i < 32; ++i) rows[half][i] = decode(bytes[i]);
  }
  for (int group = 0; group < instruction.columns / 8; ++group)
    for (int pair = 0; pair < 2; ++pair) {
      if (!read_line(cta, instruction.operand, group * 8 + thread.lane % 4 * 2 + pair, bytes)) return false;
      for (int i = 0; i < 32; ++i) column[i] = decode(bytes[i]);
      for (int half = 0; half < 2; ++half) {
        Sum sum = 0;
        for (int i = 0; i < 32; ++i) sum += rows[half][i] * column[i];
        std::uint32_t& word = instruction.into->values[static_cast<std::size_t>(group * 4 + half * 2 + pair)];
        Sum before;
        std::memcpy(&before, &word, 4);
        if (instruction.accumulate) sum = before + sum;
        std::memcpy(&word, &sum, 4);
      }
    }
  return true;
}
void finish_multiply(Thread& thread, const Multiply& instruction) {
  const std::array<float, 256>& floats = decoded();
  const bool read =
      instruction.is_float
          ? multiply_share<float, float>(thread, instruction, [&floats](std::uint8_t code) { return floats[code]; })
          : multiply_share<std::int32_t, std::int32_t>(
                thread, instruction, [](std::uint8_t code) { return static_cast<std::int8_t>(code); });
  if (!read) fail("a matrix operand outside of shared memory, or not swizzled by 128 bytes");
  Shadow& shadow = *instruction.into;
  if (--shadow.pending == 0) std::memcpy(shadow.sums, shadow.values.data(), shadow.values.size() * 4);
}

// ---- the scheduler ---------------------------------------------------------------------------------------------------------------------

bool can_go(const Thread& thread) { return !thread.done && (thread.ready == nullptr || thread.ready(thread.question)); }

std::string who_waits() {
  std::string text = "threads wait for ever:";
  std::string last;
  int shown = 0;
  for (const Thread& thread : machine.threads) {
    if (thread.done) continue;
    const std::string reason = std::string(thread.waits_for) + " at " + std::to_string(thread.waits_at & kOffsetMask);
    if (reason == last) continue;
    last = reason;
    if (shown++ == 12) return text + " ...";
    text += "\n    " + text_of(thread) + ": " + reason;
  }
  return text;
}

void run_cluster() {
  Random& random = machine.random;
  std::vector<Thread>& threads = machine.threads;
  std::size_t alive = threads.size(), misses = 0, steps = 0;
  while (alive > 0 && failure.empty()) {
    if (steps++ % kMoodSteps == 0) {  // who is slow for a while: some warps, or a whole block
      const std::size_t slow_block = random.below(machine.ctas.size() * 2);
      for (Cta& cta : machine.ctas)
        for (Warp& warp : cta.warps)
          warp.slow = random.one_in(kSlowOneIn) || static_cast<std::size_t>(cta.rank) == slow_block;
    }
    if (random.one_in(kDeliverOneIn) && deliver_one(false)) misses = 0;
    Thread* chosen = &threads[random.below(threads.size())];
    if (chosen->done || (chosen->warp->slow && !random.one_in(kSlowness)) || !can_go(*chosen)) {
      if (++misses < 4 * threads.size()) continue;
      misses = 0;
      chosen = nullptr;
      const std::size_t first = random.below(threads.size());
      for (std::size_t i = 0; i < threads.size() && chosen == nullptr; ++i)
        if (Thread& thread = threads[(first + i) % threads.size()]; can_go(thread)) chosen = &thread;
      if (chosen == nullptr) {
        if (deliver_one(false) || deliver_one(true)) continue;  // the late ones last
        return note(who_waits());
      }
    }
    misses = 0;
    to_thread(*chosen);
    if (chosen->done) --alive;
  }
  while (failure.empty() && deliver_one(true)) {
  }
}

}  // namespace

// ---- for tests -------------------------------------------------------------------------------------------------------------------------

void conduct(const Conduct& wanted) { how = wanted; }
const std::string& last_failure() { return failure; }

std::string launch(const Grid& grid, const std::function<void()>& body) {
  failure.clear();
  machine.random.engine.seed(how.seed);
  machine.body = &body;
  for (int first = 0; first < grid.blocks && failure.empty(); first += grid.cluster) {
    machine.ctas.assign(static_cast<std::size_t>(grid.cluster), Cta());
    machine.threads = std::vector<Thread>(static_cast<std::size_t>(grid.cluster * grid.threads));
    machine.own.clear();
    machine.remote.clear();
    machine.cluster = Meeting();
    for (int rank = 0; rank < grid.cluster; ++rank) {
      Cta& cta = machine.ctas[static_cast<std::size_t>(rank)];
      cta.rank = rank;
      cta.threads = grid.threads;
      cta.block.x = static_cast<unsigned>(first + rank);
      cta.memory.assign(static_cast<std::size_t>(grid.shared_bytes), 0xFF);
      cta.barriers.assign(static_cast<std::size_t>(grid.shared_bytes / 8 + 1), Mbarrier());
      cta.warps.assign(static_cast<std::size_t>(grid.threads / kWarp), Warp());
      for (int i = 0; i < grid.threads; ++i) {
        const auto index = static_cast<std::size_t>(rank * grid.threads + i);
        Thread& thread = machine.threads[index];
        thread.cta = &cta;
        thread.warp = &cta.warps[static_cast<std::size_t>(i / kWarp)];
        thread.lane = i % kWarp;
        thread.place.thread.x = static_cast<unsigned>(i);
        thread.place.block = cta.block;
        thread.place.grid.x = static_cast<unsigned>(grid.blocks);
        thread.open_stores = std::make_shared<int>(0);
        make_ready(thread, stack_of(index));
      }
    }
    run_cluster();
  }
  machine.threads.clear();
  machine.own.clear();
  machine.remote.clear();
  return failure;
}

// ---- for threads -----------------------------------------------------------------------------------------------------------------------

const Place& here() { return me().place; }
int lane() { return me().lane; }

void fail(const std::string& text) {
  if (machine.current == nullptr) {  // in a delivery
    note(text);
    std::abort();
  }
  note(text_of(me()) + ": " + text);
  for (;;) to_scheduler(true);
}

void wait_for_previous_kernel() { me().waited = true; }
void allow_next_kernel() {
  if (!me().waited) fail("lets the next kernel in before the previous one has ended");
}
void touch_global() {
  if (!me().waited && !how.early) fail("touches global memory before the previous kernel has ended");
}

std::uint8_t* shared(std::uint32_t address, std::uint32_t bytes) {
  Cta& cta = cta_at(address);
  if (cta.gone()) fail("memory of a block that has left");
  if (bytes > 1 && address % bytes != 0) fail("an address that is not aligned");
  std::uint8_t* found = bytes_at(cta, address, bytes);
  if (found == nullptr) fail("address " + std::to_string(address & kOffsetMask) + " outside of shared memory");
  return found;
}
std::uint32_t map_to(std::uint32_t address, std::uint32_t rank) {
  return (address & kOffsetMask) | (rank + 1) << kRankShift;
}

void barrier_initialize(std::uint32_t barrier, int arrivals) {
  shared(barrier, 8);
  Mbarrier& at = me().cta->barriers[(barrier - kWindow) / 8];
  at = Mbarrier{arrivals, arrivals, 0, 0};
}
void barrier_arrive(std::uint32_t barrier) {
  const std::string wrong = arrive(own_barrier(barrier));
  if (!wrong.empty()) fail(wrong + " at " + std::to_string(barrier));
}
void barrier_arrive_expecting(std::uint32_t barrier, int bytes) {
  own_barrier(barrier).bytes += bytes;
  barrier_arrive(barrier);
}
void barrier_arrive_remote(std::uint32_t barrier) {
  Cta* cta = &cta_at(barrier);
  const std::string from = text_of(me());
  post(cta != me().cta, [=] {
    Mbarrier* at = barrier_at(*cta, barrier);
    std::string wrong = cta->gone()     ? "an arrival at a block that has left"
                        : at == nullptr ? "no barrier"
                                        : arrive(*at);
    if (!wrong.empty())
      note(from + ": " + wrong + ", block " + std::to_string(cta->block.x) + ", at " +
           std::to_string(barrier & kOffsetMask));
  });
}
bool barrier_passed(std::uint32_t barrier, std::uint32_t parity) {
  return passed(own_barrier(barrier), parity) && !machine.random.one_in(4);  // it may say no for a while
}
void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  const Mbarrier& at = own_barrier(barrier);
  wait_for("barrier", barrier, [&at, parity] { return passed(at, parity); });
}

void named_barrier(int id, int threads, bool waits) {
  if (id < 0 || id >= kNamedBarriers || threads % kWarp != 0) fail("no such named barrier");
  Meeting& meeting = me().cta->named[static_cast<std::size_t>(id)];
  if (meeting.arrived == 0) meeting.expected = threads;
  if (meeting.expected != threads) fail("a named barrier of two sizes");
  const std::uint64_t generation = meeting.generation;
  if (++meeting.arrived == threads) {
    meeting.arrived = 0;
    ++meeting.generation;
  }
  if (waits)
    wait_for("named barrier", static_cast<std::uint32_t>(id),
             [&meeting, generation] { return meeting.generation != generation; });
}
void block_barrier() { named_barrier(0, me().cta->threads, true); }
int block_barrier_and(int value) {
  Meeting& meeting = me().cta->named[0];
  meeting.all = meeting.all != 0 && value != 0 ? 1 : 0;
  if (meeting.arrived + 1 == me().cta->threads) {
    meeting.verdict = meeting.all;
    meeting.all = 1;
  }
  block_barrier();
  return meeting.verdict;
}
void cluster_barrier() {
  Meeting& meeting = machine.cluster;
  const std::uint64_t generation = meeting.generation;
  if (++meeting.arrived == static_cast<int>(machine.threads.size())) {
    meeting.arrived = 0;
    ++meeting.generation;
  }
  wait_for("cluster barrier", 0, [&meeting, generation] { return meeting.generation != generation; });
}
Exchanged exchange(const char* what, std::uint64_t value) {
  Warp& warp = *me().warp;
  if (warp.arrived == 0) warp.what = what;
  if (std::strcmp(warp.what, what) != 0) fail(std::string("lanes of a warp at ") + warp.what + " and at " + what);
  warp.gathering.values[me().lane] = value;
  const std::uint64_t generation = warp.generation;
  if (++warp.arrived == kWarp) {
    warp.arrived = 0;
    warp.result = warp.gathering;
    ++warp.generation;
  }
  wait_for(what, 0, [&warp, generation] { return warp.generation != generation; });
  return warp.result;
}

namespace {

void check_box(const CUtensorMap& map, std::uint32_t address, const int (&at)[3]) {
  if (address % 128 != 0) fail("a box in shared memory that is not at a multiple of 128");
  if (at[0] * static_cast<std::int64_t>(map.element_bytes) % 16 != 0)
    fail("a box that begins within 16 bytes of global memory");
}

}  // namespace

void load_box(std::uint32_t destination, const CUtensorMap& map, const int (&at)[3], std::uint32_t barrier,
              std::uint16_t mask) {
  touch_global();
  check_box(map, destination, at);
  if (mask >> machine.ctas.size() != 0) fail("a copy for a block that the cluster does not have");
  const std::array<int, 3> place = {at[0], at[1], at[2]};
  const std::string from = text_of(me());
  for (std::size_t rank = 0; rank < machine.ctas.size(); ++rank) {
    Cta* cta = &machine.ctas[rank];
    if (mask == 0 ? cta != me().cta : (mask >> rank & 1) == 0) continue;
    post(cta != me().cta, [=, map = map] {
      if (cta->gone()) return note(from + ": a copy to a block that has left");
      Mbarrier* arrived = barrier_at(*cta, barrier);
      const bool inside = for_each_element(map, destination, place, [&](std::uint32_t to, const std::uint8_t* global) {
        std::uint8_t* bytes = bytes_at(*cta, to, map.element_bytes);
        if (bytes == nullptr) return false;
        if (global == nullptr)
          std::memset(bytes, 0, map.element_bytes);
        else
          std::memcpy(bytes, global, map.element_bytes);
        return true;
      });
      if (!inside || arrived == nullptr) return note(from + ": a copy outside of shared memory, or without a barrier");
      arrived->bytes -= box_bytes(map);
      settle(*arrived);
    });
  }
}
void store_box(const CUtensorMap& map, std::uint32_t source, const int (&at)[3]) {
  touch_global();
  check_box(map, source, at);
  Thread& thread = me();
  Cta* cta = thread.cta;
  const std::array<int, 3> place = {at[0], at[1], at[2]};
  const std::shared_ptr<int> group = thread.open_stores;
  ++*group;
  post(true, [=, map = map, from = text_of(thread)] {
    --*group;
    if (cta->gone()) return note(from + ": a copy out of a block that has left");
    const bool inside = for_each_element(map, source, place, [&](std::uint32_t shared_address, std::uint8_t* global) {
      const std::uint8_t* bytes = bytes_at(*cta, shared_address, map.element_bytes);
      if (bytes != nullptr && global != nullptr) std::memcpy(global, bytes, map.element_bytes);
      return bytes != nullptr;
    });
    if (!inside) note(from + ": a copy from outside of shared memory");
  });
}
void store_commit() {
  Thread& thread = me();
  thread.stores.push_back(std::move(thread.open_stores));
  thread.open_stores = std::make_shared<int>(0);
}
void store_wait_read(int groups) {
  const auto& stores = me().stores;
  wait_for("stores", 0, [&stores, groups] {
    for (std::size_t i = 0; i + static_cast<std::size_t>(groups) < stores.size(); ++i)
      if (*stores[i] != 0) return false;
    return true;
  });
  while (me().stores.size() > static_cast<std::size_t>(groups)) me().stores.pop_front();
}
void copy_async(std::uint32_t destination, const void* source, int bytes) {
  touch_global();
  shared(destination, static_cast<std::uint32_t>(bytes));
  me().copies.push_back({destination, source, bytes});
}
void copy_async_arrive(std::uint32_t barrier) {
  Cta* cta = me().cta;
  post(false, [=, copies = std::move(me().copies), from = text_of(me())] {
    for (const Copy& copy : copies)
      std::memcpy(bytes_at(*cta, copy.destination, static_cast<std::uint32_t>(copy.bytes)), copy.source,
                  static_cast<std::size_t>(copy.bytes));
    Mbarrier* at = barrier_at(*cta, barrier);
    const std::string wrong = cta->gone()     ? "a small copy's arrival at a block that has left"
                              : at == nullptr ? "no barrier"
                                              : arrive(*at);
    if (!wrong.empty()) note(from + ": " + wrong);
  });
  me().copies.clear();
}

void multiply(void* sums, int columns, bool is_float, std::uint64_t rows, std::uint64_t operand, bool accumulate) {
  Thread& thread = me();
  Shadow* into = nullptr;
  for (Shadow& shadow : thread.shadows)
    if (shadow.sums == sums && shadow.pending > 0) into = &shadow;
  if (into == nullptr) {
    while (!thread.shadows.empty() && thread.shadows.front().pending == 0) thread.shadows.pop_front();
    thread.shadows.push_back({sums, std::vector<std::uint32_t>(static_cast<std::size_t>(columns / 2)), 0});
    into = &thread.shadows.back();
    std::memcpy(into->values.data(), sums, into->values.size() * 4);
    std::memset(sums, 0x7E, into->values.size() * 4);
  }
  ++into->pending;
  thread.multiplies.push_back({into, columns, is_float, accumulate, rows, operand, thread.multiply_group});
}
void multiply_fence() { exchange("wgmma.fence", 0); }
void multiply_commit() {
  Thread& thread = me();
  ++thread.multiply_group;
  // The instructions may read their operands at once, or any time until they are waited for.
  if (machine.random.one_in(2)) return;
  for (; !thread.multiplies.empty(); thread.multiplies.pop_front()) finish_multiply(thread, thread.multiplies.front());
}
void multiply_wait(int groups) {
  Thread& thread = me();
  for (; !thread.multiplies.empty() && thread.multiplies.front().group < thread.multiply_group - groups;
       thread.multiplies.pop_front())
    finish_multiply(thread, thread.multiplies.front());
  exchange("wgmma.wait_group", 0);
}

}  // namespace evergemm::emulator
