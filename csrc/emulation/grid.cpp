// Runs the threads of a launch on the CPU: block after block, every thread of a block a fiber, which runs until it must
// wait for others. Which fiber goes first is free, as on the device: results that depend on it lack a synchronization.
// The blocks of a cooperative launch, which may wait for each other, have a thread of the CPU each.
#include <cuda_runtime.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

thread_local constinit dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace prunefuse::cuda {
// Behind dynamic_shared: what a block has, and room to see what is written past it.
constexpr size_t kPastShared = 4 * 1024;
alignas(16) thread_local unsigned char shared_bytes[emulation::kSharedBytes + kPastShared];
}  // namespace prunefuse::cuda

namespace prunefuse::emulation {
namespace {

constexpr unsigned kMostThreads = 1024;
constexpr size_t kStackBytes = 64 * 1024;

enum class State { kReady, kAtWarp, kAtBlock, kAtOthers, kEnded };

struct Fiber {
  std::unique_ptr<char[]> stack;
  jmp_buf registers;
  State state;
  const char* operation;  // that it waits at
  unsigned index;
  unsigned turn;  // of the two rows of `brought`
  std::exception_ptr error;
};

std::mutex device;
thread_local std::vector<Fiber> fibers(kMostThreads);
thread_local Fiber* current = nullptr;
thread_local jmp_buf scheduler;
thread_local const std::function<void()>* body = nullptr;
// Two, so that a lane may go on to the next operation before others have read what it brought to this one.
thread_local uint64_t brought_by[2][kMostThreads];
std::atomic<bool> block_failed;  // of a cooperative launch

// 0: by rising numbers; 1: by falling ones; else, at random from that seed.
uint64_t chosen_order = 0;
thread_local uint64_t random_state = 0;

uint64_t draw() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// A permutation of 0..count-1.
struct Order {
  uint64_t count, start = 0, step = 1;

  explicit Order(uint64_t of) : count(of) {
    if (chosen_order == 0) return;
    start = step = count - 1;
    if (chosen_order == 1) return;
    start = draw() % count;
    do {
      step = draw() % count;
    } while (std::gcd(step, count) != 1);
  }
  unsigned operator[](uint64_t i) const { return static_cast<unsigned>((start + step * i) % count); }
};

// Switching by _setjmp alone makes no system call, as swapcontext does; that only starts fibers.
[[gnu::noinline]] void suspend(State state) {
  current->state = state;
  if (_setjmp(current->registers) == 0) _longjmp(scheduler, 1);
}

// A fiber runs one thread after another.
void run_threads() {
  for (;;) {
    try {
      (*body)();
    } catch (...) {
      current->error = std::current_exception();
    }
    current->operation = "";
    suspend(State::kEnded);
  }
}

[[gnu::noinline]] void start(Fiber& fiber) {
  ucontext_t context;
  getcontext(&context);
  fiber.stack = std::make_unique<char[]>(kStackBytes);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, run_threads, 0);
  setcontext(&context);
}

[[gnu::noinline]] void resume(Fiber& fiber) {
  current = &fiber;
  threadIdx.x = fiber.index;
  if (_setjmp(scheduler) != 0) return;
  if (fiber.stack != nullptr) _longjmp(fiber.registers, 1);
  start(fiber);
}

std::string where(const Fiber& fiber) {
  const std::string thread = "thread " + std::to_string(fiber.index) + " of block " + std::to_string(blockIdx.x);
  return thread + (fiber.state == State::kEnded ? " has ended" : std::string(" waits at ") + fiber.operation);
}

// They all wait at the same operation, or have all ended.
void check_together(const Fiber* first, unsigned count) {
  for (const Fiber* other = first; other < first + count; ++other) {
    if (other->error) std::rethrow_exception(other->error);
  }
  for (const Fiber* other = first; other < first + count; ++other) {
    if (other->state != first->state || std::strcmp(other->operation, first->operation) != 0) {
      throw std::runtime_error("emulation: threads part ways: " + where(*first) + ", " + where(*other));
    }
  }
}

bool is_ready(const Fiber* warp) {
  return std::any_of(warp, warp + kLanes, [](const Fiber& lane) { return lane.state == State::kReady; });
}

// Runs a warp to where it waits for the block or for other blocks, or has ended; in random order, now and then, only to
// where others may go on before it.
void run_warp(Fiber* warp) {
  for (;;) {
    const Order lanes(kLanes);
    for (unsigned i = 0; i < kLanes; ++i) {
      if (warp[lanes[i]].state == State::kReady) resume(warp[lanes[i]]);
    }
    bool waits = false;
    for (unsigned i = 0; i < kLanes; ++i) {
      if (warp[i].state != State::kAtOthers) continue;
      warp[i].state = State::kReady;
      waits = true;
    }
    if (waits) return;
    check_together(warp, kLanes);
    if (warp->state != State::kAtWarp) return;
    for (unsigned i = 0; i < kLanes; ++i) warp[i].state = State::kReady;
    if (chosen_order > 1 && draw() % 8 == 0) return;
  }
}

void run_block(size_t shared) {
  // 0xff: no number, and no likely index. A kernel finds nothing that another block left, and leaves what is not its.
  std::memset(cuda::shared_bytes, 0xff, sizeof(cuda::shared_bytes));
  const unsigned threads = blockDim.x;
  for (unsigned i = 0; i < threads; ++i) {
    fibers[i].state = State::kReady;
    fibers[i].index = i;
    fibers[i].error = nullptr;
  }
  for (bool waits = true; waits;) {
    const Order warps(threads / kLanes);
    waits = false;
    for (unsigned i = 0; i < threads / kLanes; ++i) {
      Fiber* const warp = &fibers[warps[i] * kLanes];
      if (is_ready(warp)) run_warp(warp);
      waits = waits || is_ready(warp);
    }
    if (waits) continue;
    check_together(fibers.data(), threads);
    waits = fibers[0].state == State::kAtBlock;
    for (unsigned i = 0; waits && i < threads; ++i) fibers[i].state = State::kReady;
  }
  for (size_t i = shared; i < sizeof(cuda::shared_bytes); ++i) {
    if (cuda::shared_bytes[i] != 0xff) throw std::runtime_error("emulation: a write past the shared memory asked for");
  }
}

// A block of a cooperative launch. What it throws, which others wait for in vain.
std::exception_ptr run_alone(const cudaLaunchConfig_t& config, const std::function<void()>& thread, unsigned block) {
  body = &thread;
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  blockIdx.x = block;
  random_state = chosen_order + block;
  try {
    run_block(config.dynamicSmemBytes);
  } catch (...) {
    block_failed = true;
    return std::current_exception();
  }
  return nullptr;
}

void run_together(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  std::vector<std::exception_ptr> errors(config.gridDim.x);
  std::vector<std::thread> blocks;
  block_failed = false;
  for (unsigned i = 0; i < config.gridDim.x; ++i) {
    blocks.emplace_back([&, i] { errors[i] = run_alone(config, thread, i); });
  }
  for (std::thread& block : blocks) block.join();
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

void run_blocks(const cudaLaunchConfig_t& config, bool cooperative, const std::function<void()>& thread) {
  const std::lock_guard lock(device);
  if (cooperative) return run_together(config, thread);
  body = &thread;
  gridDim = config.gridDim;
  blockDim = config.blockDim;
  random_state = chosen_order;
  const Order blocks(gridDim.x);
  try {
    for (unsigned i = 0; i < gridDim.x; ++i) {
      blockIdx.x = blocks[i];
      run_block(config.dynamicSmemBytes);
    }
  } catch (...) {
    for (Fiber& fiber : fibers) fiber.stack.reset();  // where others still wait; the next launch starts them anew
    throw;
  }
}

// Of a graph: what it does, in order.
bool is_capturing = false;
std::vector<std::function<void()>> captured;

}  // namespace

void run(std::function<void()> work) {
  if (is_capturing) {
    captured.push_back(std::move(work));
  } else {
    work();
  }
}

int multiprocessors = 2;

unsigned lane() { return threadIdx.x % kLanes; }

const uint64_t* meet_warp(const char* operation, unsigned mask, uint64_t brought) {
  if (mask != 0xffffffffu) throw std::runtime_error(std::string("emulation: a part of a warp at ") + operation);
  Fiber& me = *current;
  me.operation = operation;
  me.turn ^= 1;
  brought_by[me.turn][me.index] = brought;
  suspend(State::kAtWarp);
  return &brought_by[me.turn][me.index - me.index % kLanes];
}

void meet_block() {
  current->operation = "__syncthreads";
  suspend(State::kAtBlock);
}

void wait_for_others() {
  if (block_failed) throw std::runtime_error("emulation: another block has failed");
  std::this_thread::yield();
  suspend(State::kAtOthers);
}

cudaError_t run_grid(const cudaLaunchConfig_t& config, std::function<void()> thread) {
  const dim3 grid = config.gridDim, block = config.blockDim;
  if (grid.x < 1 || grid.x > 0x7fffffffu || grid.y != 1 || grid.z != 1 || block.x < 1 || block.x > kMostThreads ||
      block.x % kLanes != 0 || block.y != 1 || block.z != 1 || config.dynamicSmemBytes > kSharedBytes) {
    return cudaErrorInvalidConfiguration;
  }
  // All blocks of a cooperative launch are resident, one on each multiprocessor.
  const bool cooperative = config.numAttrs > 0 && config.attrs->val.cooperative;
  if (cooperative && grid.x > static_cast<unsigned>(multiprocessors)) return cudaErrorInvalidConfiguration;
  run([config, cooperative, thread = std::move(thread)] { run_blocks(config, cooperative, thread); });
  return cudaSuccess;
}

}  // namespace prunefuse::emulation

// For the tests.
extern "C" {
__attribute__((visibility("default"))) void emulation_choose_order(uint64_t order) {
  prunefuse::emulation::chosen_order = order;
}
__attribute__((visibility("default"))) void emulation_choose_multiprocessors(int count) {
  prunefuse::emulation::multiprocessors = count;
}
// From where it is called with true to where it is called with false, launches are kept, not run.
__attribute__((visibility("default"))) void emulation_capture(bool on) {
  if (on) prunefuse::emulation::captured.clear();
  prunefuse::emulation::is_capturing = on;
}
__attribute__((visibility("default"))) void emulation_replay() {
  for (const auto& work : prunefuse::emulation::captured) work();
}
}
