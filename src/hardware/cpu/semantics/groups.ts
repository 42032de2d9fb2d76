/** All groups of instructions that the core has. A new group is a file here and a line in this list. */
import { aes } from './aes.ts';
import { arithmetic } from './arithmetic.ts';
import { bits } from './bit.ts';
import { bitManipulation } from './bit-manipulation.ts';
import { branch } from './branch.ts';
import { carryless } from './carryless.ts';
import { checksum } from './checksum.ts';
import { exchange } from './exchange.ts';
import { flagRegister } from './flag-register.ts';
import { move } from './move.ts';
import { multiPrecision } from './multi-precision.ts';
import { multiplication } from './multiply.ts';
import type { Group } from './operation.ts';
import { shifts } from './shift.ts';
import { sseConversion } from './sse-conversion.ts';
import { sseFloat } from './sse-float.ts';
import { sse2 } from './sse2.ts';
import { sse41 } from './sse4-1.ts';
import { ssse3 } from './ssse3.ts';
import { stack } from './stack.ts';
import { strings } from './string.ts';
import { stringCompare } from './string-compare.ts';
import { transfer } from './transfer.ts';

export const GROUPS: readonly Group[] = [
  transfer,
  move,
  arithmetic,
  stack,
  branch,
  flagRegister,
  shifts,
  bits,
  bitManipulation,
  checksum,
  multiplication,
  multiPrecision,
  exchange,
  strings,
  sse2,
  sseFloat,
  sseConversion,
  ssse3,
  sse41,
  stringCompare,
  aes,
  carryless,
];
