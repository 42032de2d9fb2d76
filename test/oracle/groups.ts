/** Mnemonics by group, as the oracle asks for them. */

import { aes } from '../../src/hardware/cpu/semantics/aes.ts';
import { carryless } from '../../src/hardware/cpu/semantics/carryless.ts';
import { CONDITIONS } from '../../src/hardware/cpu/semantics/flags.ts';
import { sse2 } from '../../src/hardware/cpu/semantics/sse2.ts';
import { sse41 } from '../../src/hardware/cpu/semantics/sse4-1.ts';
import { ssse3 } from '../../src/hardware/cpu/semantics/ssse3.ts';
import { stringCompare } from '../../src/hardware/cpu/semantics/string-compare.ts';

const perCondition = (prefix: string): string[] =>
  CONDITIONS.map(([name]) => `${prefix}${name.toLowerCase()}`);

const fourForms = (stems: string): string[] =>
  stems.split(' ').flatMap((stem) => ['ss', 'sd', 'ps', 'pd'].map((form) => stem + form));

/** Groups whose snippets begin with floating-point numbers in vectors and memory, and with any MXCSR. */
export const FLOAT_GROUPS: ReadonlySet<string> = new Set([
  'floatArithmetic',
  'floatHorizontal',
  'floatApproximation',
  'floatComparison',
  'floatConversion',
]);

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
  stringCompare: Object.keys(stringCompare.instructions),
  cryptography: [...Object.keys(aes.instructions), ...Object.keys(carryless.instructions)],
  floatArithmetic: fourForms('Add Sub Mul Div Sqrt Min Max'),
  floatHorizontal: 'Addsubps Addsubpd Haddps Haddpd Hsubps Hsubpd Dpps Dppd'.split(' '),
  floatApproximation: 'Rcpss Rcpps Rsqrtss Rsqrtps'.split(' '),
  floatComparison: [...fourForms('Cmp'), ...'Comiss Comisd Ucomiss Ucomisd'.split(' ')],
  floatConversion: [
    ...fourForms('Round'),
    ...'Cvtss2sd Cvtsd2ss Cvtps2pd Cvtpd2ps Cvtdq2ps Cvtdq2pd Cvtps2dq Cvttps2dq Cvtpd2dq Cvttpd2dq'.split(
      ' ',
    ),
    ...'Cvtsi2ss Cvtsi2sd Cvtss2si Cvtsd2si Cvttss2si Cvttsd2si'.split(' '),
  ],
  flags: 'Lahf Sahf Clc Stc Cmc Cld Std'.split(' '),
};
