// Threads that share the work of a step without waiting for each other more than they must.
//
// 1. A step is a sequence of phases, the same for every thread; a phase is a number of tasks that threads claim in runs.
// 2. A phase ends when its tasks are done, not when all threads have come. The calling thread alone can do all of them,
//    so nobody waits for a helper that the system has put aside for another program.
// 3. A helper that waits in vain for a while leaves the step. Between steps helpers look for the next one for a while,
//    yielding, and then sleep.
//
// OpenMP's regions begin and end with all threads: on a machine whose cores are taken that is two waits for the system's
// scheduler a phase.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "vectors.h"

static inline void pause_or_yield(i64 spins) {
    if (spins > 2000) {
        sched_yield();
        return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

struct alignas(128) Phase {
    std::atomic<i64> claimed{0}, done{0};
};

// Of one step.
class Phases {
  public:
    Phase* cleared(i64 count) {
        if (i64(phases_.size()) < count) phases_ = std::vector<Phase>(count);
        for (Phase& phase : phases_) {
            phase.claimed.store(0, std::memory_order_relaxed);
            phase.done.store(0, std::memory_order_relaxed);
        }
        return phases_.data();
    }

  private:
    std::vector<Phase> phases_;
};

// What one thread has of the team; thread 0 is the calling one.
class Team {
  public:
    Team(Phase* phases, i64 thread, i64 threads) : thread(thread), threads(threads), next_(phases) {}
    // Of one.
    Team() : Team(nullptr, 0, 1) {}

    const i64 thread, threads;

    // One phase. work(begin, end) does tasks begin .. end - 1; what they wrote can be read after this returns.
    template <class Work>
    void ranges(i64 tasks, Work work, i64 runs) {
        if (left_ || !tasks) return;
        if (threads == 1) return work(0, tasks);
        Phase& phase = *next_++;
        const i64 size = std::max<i64>(1, tasks / (runs * threads));
        for (;;) {
            const i64 begin = phase.claimed.fetch_add(size, std::memory_order_relaxed);
            if (begin >= tasks) break;
            const i64 end = std::min(tasks, begin + size);
            work(begin, end);
            phase.done.fetch_add(end - begin, std::memory_order_release);
        }
        for (i64 spins = 0; phase.done.load(std::memory_order_acquire) < tasks; spins++) {
            if ((left_ = thread && spins > PATIENCE)) return;
            pause_or_yield(thread ? 0 : spins);
        }
    }

    template <class Work>
    void each(i64 tasks, Work work, i64 runs = 4) {
        ranges(tasks, [&](i64 begin, i64 end) {
            for (i64 task = begin; task < end; task++) work(task);
        }, runs);
    }

    // Whether this thread has given up on the step: its phases are none any more.
    bool left() const { return left_; }

  private:
    static constexpr i64 PATIENCE = 10000;
    Phase* next_;
    bool left_ = false;
};

// The process's helpers.
class Pool {
  public:
    // run(team) on this thread and on up to threads - 1 helpers; alone if another thread has the helpers.
    template <class Run>
    void run(Phase* first, i64 threads, Run& run) {
        std::unique_lock<std::mutex> one_step(steps_, std::defer_lock);
        Team alone;
        if (threads < 2 || !one_step.try_lock()) return run(alone);
        for (; helpers_ < threads - 1; helpers_++) std::thread(&Pool::help, this, helpers_ + 1).detach();
        first_ = first, threads_ = threads, what_ = &run;
        call_ = [](void* what, Team& team) { (*static_cast<Run*>(what))(team); };
        epoch_.fetch_add(1);
        if (asleep_.load()) {
            std::lock_guard<std::mutex> lock(bed_);
            wake_.notify_all();
        }
        Team team(first, 0, threads);
        run(team);
        epoch_.fetch_add(1);
        for (i64 spins = 0; inside_.load(); spins++) pause_or_yield(spins);
    }

    // A child process has none of its parent's threads, so it gets a pool of its own. Never destroyed: helpers outlive
    // everything.
    static Pool& of_process() {
        static Pool* pool = [] {
            pthread_atfork(nullptr, nullptr, [] { place() = new Pool; });
            return place() = new Pool;
        }();
        (void)pool;
        return *place();
    }

  private:
    static Pool*& place() {
        static Pool* pool = nullptr;
        return pool;
    }

    // A step is open while the epoch is odd. A helper says that it is inside before it looks whether the step is still
    // open, the caller closes it before it looks for helpers inside: one of the two sees the other.
    void help(i64 thread) {
        for (i64 seen = 0;;) {
            wait(seen);
            inside_.fetch_add(1);
            seen = epoch_.load();
            if (seen % 2 && thread < threads_) {
                Team team(first_, thread, threads_);
                call_(what_, team);
            }
            inside_.fetch_sub(1);
        }
    }

    void wait(i64 seen) {
        auto news = [&] { return epoch_.load() % 2 && epoch_.load() != seen; };
        for (i64 spins = 0; spins < 4000; spins++) {
            if (news()) return;
            pause_or_yield(spins);
        }
        std::unique_lock<std::mutex> lock(bed_);
        asleep_.fetch_add(1);
        wake_.wait(lock, news);
        asleep_.fetch_sub(1);
    }

    std::mutex steps_, bed_;
    std::condition_variable wake_;
    std::atomic<i64> epoch_{0}, inside_{0}, asleep_{0};
    i64 helpers_ = 0, threads_ = 0;
    Phase* first_ = nullptr;
    void* what_ = nullptr;
    void (*call_)(void*, Team&) = nullptr;
};

// run(team) on the threads of a team; it has at most `count` phases.
template <class Run>
static void together(Phases& phases, i64 count, i64 threads, Run run) {
    Pool::of_process().run(phases.cleared(count), threads, run);
}
