/**
 * Floating point of SSE, SSE2, SSE3 and SSE4.1 (AMD APM volume 4). What is computed here is what needs no thought: MXCSR as it is at
 * reset, to nearest and all exceptions masked, ordinary numbers, and no sticky flag to set that is not set. The rest goes to the slow path,
 * which has every instruction in full (float/instructions.ts).
 */
import { floatNumber } from '../float/instructions.ts';
import { type Group, type Instruction, type Operation, READ, type Role, UPDATE, WRITE } from './operation.ts';

const VECTOR = [128] as const;

const byMnemonic =
  (mnemonic: string): (() => number) =>
  () =>
    floatNumber(mnemonic);

interface Shape {
  readonly roles: readonly Role[];
  readonly aligned?: true;
  readonly float?: Instruction['float'];
  readonly sizes?: Operation['sizes'];
}

const read = (size: 32 | 64): Role => ({ access: 'read', size });

/** By the mnemonic's end: how wide the source is. */
function source(mnemonic: string): Role {
  if (mnemonic.endsWith('ss')) return read(32);
  return mnemonic.endsWith('sd') ? read(64) : READ;
}

const FOUR = ['ss', 'sd', 'ps', 'pd'];
const TWO = ['ps', 'pd'];
const forms = (stems: string, ends: readonly string[]): string[] =>
  stems.split(' ').flatMap((stem) => ends.map((end) => stem + end));

const shape = (mnemonic: string, roles: readonly Role[], aligned: boolean): [string, Shape] => [
  mnemonic,
  aligned ? { roles, aligned } : { roles },
];
const isPacked = (mnemonic: string): boolean => mnemonic.endsWith('ps') || mnemonic.endsWith('pd');

const integerSizes = (sizes: readonly number[], operand: 0 | 1): number => sizes[operand]!;

const SHAPES: Readonly<Record<string, Shape>> = {
  ...Object.fromEntries([
    ...[...forms('Add Sub Mul Div Min Max', FOUR), ...forms('Addsub Hadd Hsub', TWO)].map((m) =>
      shape(m, [UPDATE, source(m)], isPacked(m)),
    ),
    ...forms('Sqrt', FOUR).map((m) => shape(m, [UPDATE, source(m)], isPacked(m))),
    ...[...forms('Cmp Round', FOUR), ...forms('Dp', TWO)].map((m) =>
      shape(m, [UPDATE, source(m), READ], isPacked(m)),
    ),
    ...['Comiss', 'Comisd', 'Ucomiss', 'Ucomisd'].map((m) => shape(m, [READ, source(m)], false)),
  ]),
  Cvtss2sd: { roles: [UPDATE, read(32)] },
  Cvtsd2ss: { roles: [UPDATE, read(64)] },
  Cvtps2pd: { roles: [WRITE, read(64)] },
  Cvtpd2ps: { roles: [WRITE, READ], aligned: true },
  Cvtdq2ps: { roles: [WRITE, READ], aligned: true },
  Cvtdq2pd: { roles: [WRITE, read(64)] },
  Cvtps2dq: { roles: [WRITE, READ], aligned: true },
  Cvttps2dq: { roles: [WRITE, READ], aligned: true },
  Cvtpd2dq: { roles: [WRITE, READ], aligned: true },
  Cvttpd2dq: { roles: [WRITE, READ], aligned: true },
};

const operations: Record<string, Operation> = {};
const instructions: Record<string, Instruction> = {};

for (const [mnemonic, { roles, aligned }] of Object.entries(SHAPES)) {
  const operation = mnemonic.toLowerCase();
  operations[operation] = {
    sizes: VECTOR,
    destination: roles[0] === WRITE ? 'write' : 'update',
    emit: (c) => c.leaveToSystem(),
  };
  instructions[mnemonic] = {
    operation,
    roles,
    float: byMnemonic(mnemonic),
    ...(aligned ? { aligned } : {}),
  };
}

for (const mnemonic of ['Cvtsi2ss', 'Cvtsi2sd']) {
  for (const bits of [32, 64] as const)
    operations[`${mnemonic.toLowerCase()}${bits}`] = { sizes: VECTOR, emit: (c) => c.leaveToSystem() };
  instructions[mnemonic] = {
    operation: (sizes) => `${mnemonic.toLowerCase()}${sizes[1]}`,
    roles: [UPDATE, { access: 'read', own: true }],
    float: (sizes) => floatNumber(`${mnemonic} ${integerSizes(sizes, 1)}`),
  };
}
for (const mnemonic of ['Cvtss2si', 'Cvtsd2si', 'Cvttss2si', 'Cvttsd2si']) {
  operations[mnemonic.toLowerCase()] = {
    sizes: [32, 64],
    destination: 'write',
    emit: (c) => c.leaveToSystem(),
  };
  instructions[mnemonic] = {
    operation: mnemonic.toLowerCase(),
    roles: [WRITE, read(mnemonic.includes('ss') ? 32 : 64)],
    float: (sizes) => floatNumber(`${mnemonic} ${integerSizes(sizes, 0)}`),
  };
}

export const sseFloat: Group = { operations, instructions };
