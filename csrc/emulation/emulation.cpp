// Jumps between stacks are this file's purpose; glibc's check of longjmp takes them for mistakes.
#undef _FORTIFY_SOURCE

#include "emulation/emulation.h"

#include <setjmp.h>
#include <torch/headeronly/util/Exception.h>
#include <ucontext.h>

#include <cstdlib>
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

struct Fiber {
  jmp_buf resume_at;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  bool started = false;
  dim3 thread;
  unsigned warp = 0;
  unsigned lane = 0;
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
  void arrive(const void** bottom, size_t* size) {
    __sanitizer_finish_switch_fiber(fake_stack, bottom, size);
  }
#else
  void leave(const void*, size_t) {}
  void arrive(const void**, size_t*) {}
#endif
};

// The block that runs now. Fibers are kept from block to block: each runs the body again and again.
struct Block {
  std::vector<Fiber> fibers;
  std::vector<unsigned char> slots;
  std::vector<unsigned char> shared;
  jmp_buf scheduler;
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

// Changes stacks by setjmp and longjmp: swapcontext would ask the kernel for the signal mask each
// time.
void back_to_scheduler(Fiber& self) {
  StackSwitch stack;
  stack.leave(block.scheduler_stack, block.scheduler_stack_bytes);
  if (_setjmp(self.resume_at) == 0) {
    _longjmp(block.scheduler, 1);
  }
  stack.arrive(&block.scheduler_stack, &block.scheduler_stack_bytes);
}

void enter_fiber() {
  StackSwitch().arrive(&block.scheduler_stack, &block.scheduler_stack_bytes);
  for (;;) {
    Fiber& self = *block.current;
    block.body();
    self.done = true;
    back_to_scheduler(self);
  }
}

// Its own function: getcontext returns twice for all the compiler knows, and nothing here lives on.
[[noreturn]] void start(Fiber& fiber) {
  ucontext_t context;
  fiber.started = true;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, enter_fiber, 0);
  setcontext(&context);
  std::abort();
}

void resume(Fiber& fiber) {
  block.current = &fiber;
  fiber.waiting = Waiting::no;
  StackSwitch stack;
  stack.leave(fiber.stack.get(), kStackBytes);
  if (_setjmp(block.scheduler) == 0) {
    if (!block.current->started) {
      start(*block.current);
    }
    _longjmp(block.current->resume_at, 1);
  }
  stack.arrive(nullptr, nullptr);
}

void wait(Waiting barrier) {
  block.current->waiting = barrier;
  back_to_scheduler(*block.current);
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

void prepare(Fiber& fiber, unsigned thread) {
  fiber.thread = dim3(
      thread % block.dim.x, thread / block.dim.x % block.dim.y, thread / (block.dim.x * block.dim.y)
  );
  fiber.warp = thread / 32;
  fiber.lane = thread % 32;
  fiber.done = false;
  fiber.waiting = Waiting::no;
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
    if (!open_barriers(threads)) {
      block.fibers.clear();  // they stand in the middle of the body
      STD_TORCH_CHECK(false, kernel, ": deadlock, not every thread reaches the same barrier");
    }
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
  block.slots.resize((threads + 31) / 32 * 32 * kSlot);
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
unsigned char* warp_slots() { return block.slots.data() + block.current->warp * 32 * kSlot; }

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
