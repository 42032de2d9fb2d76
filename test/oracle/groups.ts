/** Mnemonics by group, as the oracle asks for them. */

import { CONDITIONS } from '../../src/hardware/cpu/semantics/flags.ts';
import { sse2 } from '../../src/hardware/cpu/semantics/sse2.ts';
import { sse41 } from '../../src/hardware/cpu/semantics/sse4-1.ts';
import { ssse3 } from '../../src/hardware/cpu/semantics/ssse3.ts';

const perCondition = (prefix: string): string[] =>
  CONDITIONS.map(([name]) => `${prefix}${name.toLowerCase()}`);

export const GROUPS: Readonly<Record<string, readonly string[]>> = {
  arithmetic: 'Add Adc Sub Sbb And Or Xor Cmp Test Inc Dec Neg Not'.split(' '),
  move: 'Mov Movzx Movsx Movsxd Lea Xchg Bswap Cbw Cwde Cdqe Cwd Cdq Cqo Xlatb Movnti'.split(' '),
  conditions: [...perCondition('Cmov'), ...perCondition('Set')],
  stack: 'Push Pop Pushfq Leave Enter'.split(' '),
  shifts: 'Shl Shr Sar Sal Rol Ror Rcl Rcr Shld Shrd'.split(' '),
  bitManipulation: 'Andn Bextr Blsi Blsmsk Blsr Bzhi Mulx Pdep Pext Rorx Sarx Shlx Shrx'.split(' '),
  byteOrder: 'Movbe Crc32 Adcx Adox'.split(' '),
  bits: 'Bt Bts Btr Btc Bsf Bsr Tzcnt Lzcnt Popcnt'.split(' '),
  multiplication: 'Mul Imul Div Idiv'.split(' '),
  exchange: 'Xadd Cmpxchg Cmpxchg8b Cmpxchg16b'.split(' '),
  strings:
    'Movsb Movsw Movsd Movsq Stosb Stosw Stosd Stosq Lodsb Lodsw Lodsd Lodsq Cmpsb Cmpsw Cmpsd Cmpsq Scasb Scasw Scasd Scasq'.split(
      ' ',
    ),
  sse2: Object.keys(sse2.instructions),
  ssse3: Object.keys(ssse3.instructions),
  sse41: Object.keys(sse41.instructions),
  flags: 'Lahf Sahf Clc Stc Cmc Cld Std'.split(' '),
};
