// Threads that share one call: as many as OMP_NUM_THREADS and the affinity allow.
//
// An own pool rather than OpenMP: torch brings a libgomp of its own, and a second runtime in one
// process keeps a second set of spinning threads. A caller that finds the pool taken works alone.
// Beside an engine whose own operators take turns with ours, its OpenMP runs the parts instead
// (`se_share_threads`): two sets of threads would wait for one another's cores.
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "core.h"

namespace se {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kSpins = 4000; // some 20-60 us: longer than the gap between two linears of a token

struct Pool {
  pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER, busy = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
  int threads = 0, started = 0; // threads wanted, the caller's included; workers alive
  pid_t owner = 0;
  // Of the call in hand.
  Task task = nullptr;
  void *context = nullptr;
  int64_t parts = 0, next = 0;
  int helpers = 0;         // workers that may take part: those with a lower number
  int running = 0;         // workers that have not yet finished it
  uint64_t generation = 0; // calls so far
  int sleeping = 0;
};
Pool pool;
thread_local const Threads *borrowed = nullptr; // null: the pool's

int available() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const long found = sysconf(_SC_NPROCESSORS_ONLN);
  return found > 0 ? (int)found : 1;
}

int bounded(long wanted) {
  const int most = available() < kMaxThreads ? available() : kMaxThreads;
  return wanted < 1 ? most : wanted < most ? (int)wanted : most;
}

int from_environment() {
  const char *text = getenv("OMP_NUM_THREADS");
  return bounded(text ? strtol(text, nullptr, 10) : 0);
}

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

void work() {
  for (;;) {
    const int64_t part = __atomic_fetch_add(&pool.next, 1, __ATOMIC_RELAXED);
    if (part >= pool.parts) return;
    pool.task(pool.context, part);
  }
}

void wait_for(uint64_t seen) {
  for (int i = 0; i < kSpins; ++i) {
    if (__atomic_load_n(&pool.generation, __ATOMIC_ACQUIRE) != seen) return;
    relax();
  }
  pthread_mutex_lock(&pool.lock);
  ++pool.sleeping;
  while (__atomic_load_n(&pool.generation, __ATOMIC_ACQUIRE) == seen)
    pthread_cond_wait(&pool.wake, &pool.lock);
  --pool.sleeping;
  pthread_mutex_unlock(&pool.lock);
}

struct Start {
  int number;
  uint64_t seen;
};

void *worker(void *argument) {
  const Start start = *(Start *)argument;
  free(argument);
  for (uint64_t seen = start.seen;;) {
    wait_for(seen);
    // A call waits for all workers, so the generation cannot move on by two.
    ++seen;
    if (start.number < pool.helpers) work();
    __atomic_sub_fetch(&pool.running, 1, __ATOMIC_RELEASE);
  }
  return nullptr;
}

// What the compiler makes of `#pragma omp parallel` (libgomp, and libomp's twin of it).
typedef void (*Team)(void (*)(void *), void *, unsigned threads, unsigned flags);
Team team = nullptr;

struct Shared {
  int64_t parts, next;
  Task task;
  void *context;
};

void member(void *argument) {
  Shared &shared = *(Shared *)argument;
  for (;;) {
    const int64_t part = __atomic_fetch_add(&shared.next, 1, __ATOMIC_RELAXED);
    if (part >= shared.parts) return;
    shared.task(shared.context, part);
  }
}

void forked() { // a child has the caller's thread only
  pthread_mutex_init(&pool.lock, nullptr);
  pthread_mutex_init(&pool.busy, nullptr);
  pthread_cond_init(&pool.wake, nullptr);
  pool.started = pool.running = pool.sleeping = 0;
}

void start_workers(int wanted) {
  if (pool.owner == 0) pthread_atfork(nullptr, nullptr, forked);
  pool.owner = getpid();
  for (; pool.started < wanted; ++pool.started) {
    Start *start = (Start *)malloc(sizeof(Start));
    pthread_t id;
    if (!start) return;
    *start = {pool.started, pool.generation};
    if (pthread_create(&id, nullptr, worker, start) != 0) {
      free(start);
      return;
    }
    pthread_detach(id);
  }
}

void share(int64_t parts, Task task, void *context, int helpers) {
  start_workers(helpers);
  pool.task = task;
  pool.context = context;
  pool.parts = parts;
  pool.helpers = helpers;
  __atomic_store_n(&pool.next, 0, __ATOMIC_RELAXED);
  __atomic_store_n(&pool.running, pool.started, __ATOMIC_RELAXED);
  pthread_mutex_lock(&pool.lock);
  __atomic_add_fetch(&pool.generation, 1, __ATOMIC_RELEASE);
  if (pool.sleeping) pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.lock);
  work();
  for (int spins = 0; __atomic_load_n(&pool.running, __ATOMIC_ACQUIRE) != 0; ++spins)
    spins < kSpins ? relax() : (void)sched_yield();
}

} // namespace

const Threads *borrow(const Threads *threads) {
  const Threads *before = borrowed;
  borrowed = threads;
  return before;
}

int64_t sharers() { return borrowed ? available() : se_threads(); }

void parallel(int64_t parts, Task task, void *context) {
  if (borrowed && parts > 1) {
    borrowed->share(borrowed->self, parts, task, context);
    return;
  }
  const Team run = borrowed ? nullptr : __atomic_load_n(&team, __ATOMIC_ACQUIRE);
  if (run && parts > 1) {
    Shared shared = {parts, 0, task, context};
    run(member, &shared, 0, 0); // 0: as many as the caller's own parallel regions have
    return;
  }
  const int helpers = borrowed ? 0 : se_threads() - 1;
  if (parts > 1 && helpers > 0 && pthread_mutex_trylock(&pool.busy) == 0) {
    share(parts, task, context, helpers < parts - 1 ? helpers : (int)(parts - 1));
    pthread_mutex_unlock(&pool.busy);
    return;
  }
  for (int64_t part = 0; part < parts; ++part) task(context, part);
}

} // namespace se

extern "C" {

int32_t se_threads(void) {
  int found = __atomic_load_n(&se::pool.threads, __ATOMIC_RELAXED);
  if (found == 0) {
    found = se::from_environment();
    __atomic_store_n(&se::pool.threads, found, __ATOMIC_RELAXED);
  }
  return found;
}

void se_set_threads(int32_t count) {
  __atomic_store_n(&se::pool.threads, se::bounded(count), __ATOMIC_RELAXED);
}

void se_share_threads(void *gomp_parallel, int32_t count) {
  // Not bounded by the caller's affinity: a bound thread of OpenMP sees its own core alone.
  const int own = gomp_parallel && count > 0 ? count : se::from_environment();
  __atomic_store_n(&se::pool.threads, own, __ATOMIC_RELAXED);
  __atomic_store_n(&se::team, (se::Team)gomp_parallel, __ATOMIC_RELEASE);
}
}
