// Matrices shared out to threads by those who have several rounds of work on each.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "threads.h"

namespace spectral_fast {

// Calls work(index, space, scratch, run) for `count` > 0 matrices. work.space() is made for each matrix in work and
// work.scratch() for each thread; run(pieces, f) calls f(piece, worker) for all pieces and returns false where the call was
// cancelled, after which the work on this matrix must end. As in svdvals(): full rounds of a matrix a thread, and all
// threads inside those of a last round that would leave half of them idle. `worth`: no more threads than that.
template <typename Work>
bool run_rounds(const Work& work, int64_t count, int64_t worth, int threads, bool (*interrupted)()) {
  Crew crew(static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({threads, worth, count * work.pieces()}))), interrupted);
  const int64_t last_round = count % crew.threads();
  const int64_t together = crew.threads() > 1 && 2 * last_round <= crew.threads() ? last_round : 0;
  const int64_t apart = count - together;

  std::vector<decltype(work.space())> spaces;
  do spaces.push_back(work.space());
  while (static_cast<int64_t>(spaces.size()) < std::min<int64_t>(apart, crew.threads()));
  std::vector<decltype(work.scratch())> scratch;
  for (int worker = 0; worker < crew.threads(); ++worker) scratch.push_back(work.scratch());

  crew.run(apart, [&](int64_t index, int worker) {
    const Team team = crew.alone(worker);
    work(index, spaces[worker], scratch, [&](int64_t pieces, const auto& piece) {
      for (int64_t i = 0; i < pieces; ++i) {
        if (team.cancelled(team.pool)) return false;
        piece(i, worker);
      }
      return true;
    });
  });
  for (int64_t index = apart; index < count && !crew.poll(); ++index)
    work(index, spaces.front(), scratch, [&](int64_t pieces, const auto& piece) {
      crew.run(pieces, [&](int64_t i, int worker) {
        if (!crew.cancelled()) piece(i, worker);
      });
      return !crew.poll();
    });
  return !crew.cancelled();
}

}  // namespace spectral_fast
