// SPDX-License-Identifier: Apache-2.0
// generate COUNT [text]: writes COUNT bytes that are the same everywhere, random-looking or compressible.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int main(int count, char **arguments) {
  uint64_t rest = count > 1 ? strtoull(arguments[1], 0, 0) : 0, state = 88172645463325252u;
  static uint8_t buffer[65536];
  while (rest > 0) {
    for (unsigned i = 0; i < sizeof buffer; i += 8) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      for (unsigned j = 0; j < 8; j++) {
        uint8_t byte = (uint8_t)(state >> 8 * j);
        buffer[i + j] = count > 2 ? (uint8_t)("etaoinshrdlu \n.,"[byte & (state >> 60)]) : byte;
      }
    }
    size_t part = rest < sizeof buffer ? rest : sizeof buffer;
    if (fwrite(buffer, 1, part, stdout) != part) return 1;
    rest -= part;
  }
  return fflush(stdout) != 0;
}
