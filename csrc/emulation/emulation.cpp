#include "emulation/emulation.h"

#include <setjmp.h>
#include <torch/headeronly/util/Exception.h>
#include <ucontext.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

// The limits of the architectures we compile for (sm_80 and later), which a launch must respect.
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxGridYz = 65535;

enum class Waiting { no, at_block_barrier, at_warp_barrier };

// A place to go on from. swapcontext asks the kernel for the signal mask each time, which takes
// longer than everything else; _longjmp does not. AddressSanitizer knows the former only.
struct Context {
  ucontext_t context;
#if !defined(__SANITIZE_ADDRESS__)
  jmp_buf jump;
  bool has_run = false;
#endif
};

void switch_context(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  swapcontext(&from.context, &to.context);
#else
  if (_setjmp(from.jump) != 0) {
    return;
  }
  from.has_run = true;
  if (to.has_run) {
    _longjmp(to.jump, 1);
  }
  setcontext(&to.context);
#endif
}

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  dim3 thread;
  unsigned warp = 0;
  unsigned lane = 0;
  unsigned exchanges = 0;
  bool done = false;
  Waiting waiting = Waiting::no;
};

// AddressSanitizer must be told of every change of stack.
struct StackSwitch {
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  void leave(const void* bottom, size_t size) {
    __sanitizer_start_switch_fiber(&fake_stack, bottom, size);
  }
  void leave_for_good(const void* bottom, size_t size) {
    __sanitizer_start_switch_fiber(nullptr, bottom, size);
  }
  void arrive(const void** bottom, size_t* size) {
    __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
  }
#else
  void leave(const void*, size_t) {}
  void leave_for_good(const void*, size_t) {}
  void arrive(const void**, size_t*) {}
#endif
};

// The block that runs now. Fibers and their stacks are kept from block to block.
struct Block {
  std::vector<Fiber> fibers;
  std::vector<unsigned char> slots;
  std::vector<unsigned char> shared;
  Context scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  Fiber* current = nullptr;
  std::function<void()> body;
  dim3 index, dim, grid;
};

thread_local Block block;
std::set<std::string>& launched() {
  static std::set<std::string> names;
  return names;
}

void enter_fiber() {
  Fiber& self = *block.current;
  StackSwitch().arrive(&block.scheduler_stack, &block.scheduler_stack_bytes);
  block.body();
  self.done = true;
  StackSwitch().leave_for_good(block.scheduler_stack, block.scheduler_stack_bytes);
  switch_context(self.context, block.scheduler);
}

void resume(Fiber& fiber) {
  block.current = &fiber;
  fiber.waiting = Waiting::no;
  StackSwitch stack;
  stack.leave(fiber.stack.get(), kStackBytes);
  switch_context(block.scheduler, fiber.context);
  stack.arrive(nullptr, nullptr);
}

void wait(Waiting barrier) {
  Fiber& self = *block.current;
  self.waiting = barrier;
  StackSwitch stack;
  stack.leave(block.scheduler_stack, block.scheduler_stack_bytes);
  switch_context(self.context, block.scheduler);
  stack.arrive(&block.scheduler_stack, &block.scheduler_stack_bytes);
}

// Opens every barrier that all its unfinished threads have reached. Returns whether any thread
// can run.
bool open_barriers(unsigned threads) {
  bool whole_block = true;
  for (unsigned t = 0; t < threads; ++t) {
    whole_block &= block.fibers[t].done || block.fibers[t].waiting == Waiting::at_block_barrier;
  }
  bool runnable = false;
  for (unsigned first = 0; first < threads; first += 32) {
    const unsigned end = std::min(first + 32, threads);
    bool whole_warp = true;
    for (unsigned t = first; t < end; ++t) {
      whole_warp &= block.fibers[t].done || block.fibers[t].waiting == Waiting::at_warp_barrier;
    }
    for (unsigned t = first; t < end; ++t) {
      Fiber& fiber = block.fibers[t];
      if (whole_block || whole_warp) {
        fiber.waiting = Waiting::no;
      }
      runnable |= !fiber.done && fiber.waiting == Waiting::no;
    }
  }
  return runnable;
}

// Its own function: getcontext returns twice for all the compiler knows, and nothing here lives on.
void prepare(Fiber& fiber, unsigned thread) {
  fiber.thread = dim3(
      thread % block.dim.x, thread / block.dim.x % block.dim.y, thread / (block.dim.x * block.dim.y)
  );
  fiber.warp = thread / 32;
  fiber.lane = thread % 32;
  fiber.exchanges = 0;
  fiber.done = false;
  fiber.waiting = Waiting::no;
  ucontext_t& context = fiber.context.context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, enter_fiber, 0);
#if !defined(__SANITIZE_ADDRESS__)
  fiber.context.has_run = false;
#endif
}

void run_block(const char* kernel, unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) {
    prepare(block.fibers[t], t);
  }
  // Shared memory starts undefined: a pattern that reads as NaN shows who relied on zeros.
  std::fill(block.shared.begin(), block.shared.end(), static_cast<unsigned char>(0xff));
  for (;;) {
    bool all_done = true;
    for (unsigned t = 0; t < threads; ++t) {
      if (!block.fibers[t].done && block.fibers[t].waiting == Waiting::no) {
        resume(block.fibers[t]);
      }
      all_done &= block.fibers[t].done;
    }
    if (all_done) {
      return;
    }
    STD_TORCH_CHECK(
        open_barriers(threads), kernel, ": deadlock, not every thread reaches the same barrier"
    );
  }
}

}  // namespace

void run(const char* kernel, dim3 grid, dim3 dim, size_t shared_bytes, std::function<void()> body) {
  const uint64_t threads = uint64_t{dim.x} * dim.y * dim.z;
  STD_TORCH_CHECK(
      threads >= 1 && threads <= kMaxThreads, kernel, ": ", threads, " threads in a block"
  );
  STD_TORCH_CHECK(
      grid.y <= kMaxGridYz && grid.z <= kMaxGridYz, kernel, ": grid y or z is over 65535"
  );
  STD_TORCH_CHECK(
      shared_bytes <= kMaxSharedBytes, kernel, ": ", shared_bytes, " bytes of shared memory"
  );
  launched().insert(kernel);
  block.body = std::move(body);
  block.dim = dim;
  block.grid = grid;
  while (block.fibers.size() < threads) {
    block.fibers.emplace_back();
  }
  block.slots.resize((threads + 31) / 32 * 2 * 32 * kSlot);
  block.shared.resize(shared_bytes);
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        block.index = dim3(x, y, z);
        run_block(kernel, static_cast<unsigned>(threads));
      }
    }
  }
}

const dim3& thread_index() { return block.current->thread; }
const dim3& block_index() { return block.index; }
const dim3& block_dim() { return block.dim; }
const dim3& grid_dim() { return block.grid; }
unsigned lane() { return block.current->lane; }
void* dynamic_shared() { return block.shared.data(); }
void sync_block() { wait(Waiting::at_block_barrier); }
void sync_warp() { wait(Waiting::at_warp_barrier); }
unsigned char* warp_slots() {
  Fiber& self = *block.current;
  return block.slots.data() + (2 * self.warp + self.exchanges++ % 2) * 32 * kSlot;
}

}  // namespace emulation

// The names of the kernels launched so far, joined by commas: the test that every kernel is covered
// asks for them.
extern "C" __attribute__((visibility("default"))) const char* fullspectrum_launched_kernels() {
  static std::string names;
  names.clear();
  for (const std::string& name : emulation::launched()) {
    names += (names.empty() ? "" : ",") + name;
  }
  return names.c_str();
}
