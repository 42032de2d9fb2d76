/** Two chains of carries at once (Intel SDM volume 2, APM volume 3: ADCX by CF, ADOX by OF): each leaves all flags but its own alone. */
import { STATE } from '../state.ts';
import { type I64, i64 } from '../wasm/value.ts';
import { carriesOfSum, signExtend } from './flags.ts';
import { type Group, type OperandContext, type Operation, READ, UPDATE } from './operation.ts';

const SIGN = -1n << 63n;

/** `flag` is the word whose sign is the carry; its other bits stay. */
function addByFlag(flag: number): Operation['emit'] {
  return (c: OperandContext) => {
    const a = c.read(0);
    const b = c.read(1);
    const carry: I64 = i64.shrU(c.state(flag), 63);
    const r = c.code.let(signExtend(i64.add(i64.add(a, b), carry), c.size));
    c.write(0, r);
    const out = i64.and(carriesOfSum(a, b, r), SIGN);
    c.setState(flag, i64.or(i64.and(c.state(flag), ~SIGN), out));
  };
}

export const multiPrecision: Group = {
  operations: {
    adcx: { sizes: [32, 64], emit: addByFlag(STATE.FLAG_CV) },
    adox: { sizes: [32, 64], emit: addByFlag(STATE.FLAG_OV) },
  },
  instructions: {
    Adcx: { operation: 'adcx', roles: [UPDATE, READ] },
    Adox: { operation: 'adox', roles: [UPDATE, READ] },
  },
};
