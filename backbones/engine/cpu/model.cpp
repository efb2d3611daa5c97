// One decoding step of a whole model in one call, for Python's ctypes (`library.py`). Steps return a number of `Wrong`.

#include "bimamba.h"
#include "decoder.h"
#include "hymba.h"
#include "sampler.h"

extern "C" {

i64 nlrl_lanes() { return LANES; }

i64 nlrl_decoder_step(const Sizes* sizes, const Outer* outer, const DecoderLayer* layers, const Cache* cache,
                      const Call* call) {
    return decoder_step(*sizes, *outer, layers, *cache, *call);
}

i64 nlrl_bimamba_step(const Sizes* sizes, const Outer* outer, const MixerLayer* layers, const Part* windows,
                      const Part* states, const i64* rows, const Call* call) {
    return bimamba_step(*sizes, *outer, layers, *windows, *states, *rows, *call);
}

i64 nlrl_hymba_step(const Sizes* sizes, const Outer* outer, const HymbaLayer* layers, const HymbaPlace* places,
                    const HymbaState* state, const Call* call) {
    return hymba_step(*sizes, *outer, layers, places, *state, *call);
}

void nlrl_sample(const Draw* draw) { sample(*draw); }
}
