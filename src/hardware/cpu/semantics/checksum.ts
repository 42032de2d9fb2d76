/** CRC32 (APM volume 3): the Castagnoli polynomial, bits reflected, over 8 to 64 bits of the source. */
import { i32, i64 } from '../wasm/value.ts';
import { type Group, type Operation, READ, type Size, UPDATE } from './operation.ts';

const POLYNOMIAL = 0x82f63b78;

/** The message's bits leave at the low end one by one; the remainder stands in the low 32 bits all the time. */
function accumulate(from: Size): Operation {
  return {
    sizes: [32, 64],
    forms: ['registers', 'memory1'],
    flags: 'keep',
    emit: (c) => {
      const { code } = c;
      const source = c.readUnsigned(1, from);
      const r = code.let(i64.xor(c.readUnsigned(0, 32), source));
      const left = code.let(i32.const(from));
      code.loop((again) => {
        const divided = i64.and(i64.sub(0, i64.and(r, 1)), POLYNOMIAL);
        code.set(r, i64.xor(i64.shrU(r, 1), divided));
        code.set(left, i32.sub(left, 1));
        code.brIf(again, left);
      });
      c.write(0, r, 64);
    },
  };
}

export const checksum: Group = {
  operations: {
    crc32of8: accumulate(8),
    crc32of16: accumulate(16),
    crc32of32: accumulate(32),
    crc32of64: accumulate(64),
  },
  instructions: {
    Crc32: { operation: (sizes) => `crc32of${sizes[1]}`, roles: [UPDATE, READ] },
  },
};
