/** All groups of instructions that the core has. A new group is a file here and a line in this list. */
import { arithmetic } from './arithmetic.ts';
import { branch } from './branch.ts';
import { flagRegister } from './flag-register.ts';
import { move } from './move.ts';
import type { Group } from './operation.ts';
import { stack } from './stack.ts';
import { transfer } from './transfer.ts';

export const GROUPS: readonly Group[] = [transfer, move, arithmetic, stack, branch, flagRegister];
