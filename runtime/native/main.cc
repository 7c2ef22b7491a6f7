// tinytl-edge-trainer: reads one job (a JSON object) on standard input, says events on standard output.
#include <csignal>
#include <cstdio>
#include <cstring>
#include <new>

#include "bench.h"
#include "errors.h"
#include "events.h"
#include "footprint.h"
#include "front.h"
#include "job.h"
#include "trace.h"
#include "trainer.h"

namespace {

void ask_to_stop(int) { tinytl::stop_asked = 1; }

int report(tinytl::Events& events, tinytl::Front* front, int exit_code, const char* message) {
  if (front) return front->failed(exit_code, message);
  events.begin("error")
      .text("message", message)
      .integer("exit_code", exit_code)
      .integer("peak_rss_bytes", tinytl::peak_rss());
  events.send();
  return exit_code;
}

}  // namespace

int main(int count, char** words) {
  if (count > 1) {
    std::printf(
        "tinytl-edge-trainer reads one job, a JSON object, on standard input and says events on standard output:\n"
        "    tinytl-edge-trainer < job.json\n"
        "docs/native.md describes jobs and events.\n");
    return std::strcmp(words[1], "--help") == 0 ? 0 : tinytl::kUsage;
  }
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // writing says so
  std::signal(SIGINT, ask_to_stop);
  std::signal(SIGTERM, ask_to_stop);
  if (std::signal(SIGHUP, ask_to_stop) == SIG_IGN) std::signal(SIGHUP, SIG_IGN);  // begun with nohup
  sigset_t all;
  sigemptyset(&all);
  sigprocmask(SIG_SETMASK, &all, nullptr);  // runtime/workers/become.py blocked them until here
  tinytl::Events events;
  std::unique_ptr<tinytl::Front> front;
  try {
    const tinytl::Job job = tinytl::Job::read();
    front = tinytl::front_of(job);
    events.lead(front.get());
    const std::string command = job.text("command");
    if (command == "train") {
      tinytl::train(job, events);
    } else if (command == "align") {
      tinytl::align(job, events);
    } else if (command == "evaluate") {
      tinytl::evaluate(job, events);
    } else if (command == "predict") {
      tinytl::predict(job, events);
    } else if (command == "verify") {
      tinytl::verify(job, events);
    } else if (command == "bench") {
      tinytl::bench(job, events);
    } else if (command == "trace") {
      tinytl::trace(job, events);
    } else {
      tinytl::fail(tinytl::kUsage, "There is no command '%s': train, align, evaluate, predict, verify, bench or trace.", command.c_str());
    }
    return 0;
  } catch (const tinytl::Failure& failure) {
    return report(events, front.get(), failure.exit_code, failure.message.c_str());
  } catch (const std::bad_alloc&) {
    return report(events, front.get(), tinytl::kMemoryLimit, "There is not enough memory: use a smaller input.");
  }
}
