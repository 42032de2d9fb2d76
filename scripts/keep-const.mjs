// Makes top-level `var`s of an esbuild bundle `const` again where nothing assigns to them. esbuild turns every top-level `const` and `class` of a bundle into a
// `var`; V8 compiles constants into code only where it knows them as such, and without that each `SAVE.RIP` is three loads and two checks (an exit to
// the VMM takes 1.4 times as long).
import ts from 'typescript';

/** `text`: the bundle, not minified. Returns it changed. */
export function keepConst(text) {
  const file = ts.createSourceFile('bundle.js', text, ts.ScriptTarget.Latest, false, ts.ScriptKind.JS);
  const assigned = new Set();
  // By name alone, wherever: a local variable of the same name only keeps a `var` a `var`.
  const note = (target) => {
    if (ts.isIdentifier(target)) assigned.add(target.text);
    else if (!ts.isPropertyAccessExpression(target) && !ts.isElementAccessExpression(target))
      ts.forEachChild(target, note);
  };
  const visit = (node) => {
    const { kind } = node;
    if (kind === ts.SyntaxKind.BinaryExpression && isAssignment(node.operatorToken.kind)) note(node.left);
    else if (kind === ts.SyntaxKind.PrefixUnaryExpression || kind === ts.SyntaxKind.PostfixUnaryExpression) {
      if (node.operator === ts.SyntaxKind.PlusPlusToken || node.operator === ts.SyntaxKind.MinusMinusToken)
        note(node.operand);
    } else if (kind === ts.SyntaxKind.ForInStatement || kind === ts.SyntaxKind.ForOfStatement)
      note(node.initializer);
    ts.forEachChild(node, visit);
  };
  visit(file);
  let result = '';
  let end = 0;
  for (const statement of file.statements) {
    if (!ts.isVariableStatement(statement)) continue;
    const { declarationList } = statement;
    const { declarations, flags } = declarationList;
    const isVar = (flags & ts.NodeFlags.BlockScoped) === 0;
    if (
      !isVar ||
      !declarations.every(({ initializer, name }) => initializer && isNeverAssigned(name, assigned))
    )
      continue;
    const start = declarationList.getStart(file);
    result += `${text.slice(end, start)}const`;
    end = start + 'var'.length;
  }
  return result + text.slice(end);
}

const isAssignment = (kind) => kind >= ts.SyntaxKind.FirstAssignment && kind <= ts.SyntaxKind.LastAssignment;

/** `name`: an identifier, or a pattern of them. */
function isNeverAssigned(name, assigned) {
  if (ts.isIdentifier(name)) return !assigned.has(name.text);
  return name.elements.every(
    (element) => ts.isOmittedExpression(element) || isNeverAssigned(element.name, assigned),
  );
}
